"""What cannot be run is refused before any data is read, whoever would have refused it later."""

import pytest
import pytorch_lightning as pl
import torch
from runs import CONF, TINY

from cvattn.harness import ConfigError, check_command_line
from cvattn.harness.config.resolve import resolve

NET = __name__ + ".Net"


class Net(torch.nn.Module):
    """Somebody's own."""


class OrdinaryData(pl.LightningDataModule):
    """Somebody's own, too."""


WRONG = [
    ("trainer.max_epochs=-1", r"the learning-rate schedule needs an end"),
    ("trainer.max_epochs=null", r"the learning-rate schedule needs an end"),
    ("trainer.max_epochs=0", r"max_epochs=0: expected at least 1"),
    ("trainer.max_steps=0", r"max_steps=0: expected at least 1"),
    ("trainer.max_epochs=-7", r"max_epochs=-7: expected at least 1"),
    ("recipe.optimizer.lr=nan", r"optimizer\.lr=nan: expected a number"),
    ("recipe.optimizer.lr=-0.5", r"recipe\.optimizer: lr=-0\.5 must be 0 or positive"),
    ("recipe.warmup=1.5", r"warmup=1\.5 must be in \[0, 1\)"),
    ("recipe.label_smoothing=2.0", r"label_smoothing=2\.0 must be in"),
    ("callbacks.attention.num_images=0", r"num_images=0 must be at least 1"),
    ("data.batch_size=99 trainer.devices=2", r"99 .* not divisible by 2; nearest .* 98 and 100"),
    ("data.batch_size=99 trainer.devices=[0,1]", r"not divisible by 2"),
    ("data.batch_size=99 trainer.devices='0,1'", r"not divisible by 2"),
    ("trainer.strategy=ddp_spawn", r"use trainer\.strategy=ddp"),
    ("trainer.strategy=ddp_notebook", r"use trainer\.strategy=ddp"),
    ("trainer.strategy=fsdp", r"a part of the network only.* use trainer\.strategy=ddp"),
    ("trainer.strategy=deepspeed_stage_2", r"a part of the network only"),
    ("trainer.strategy=dpp", r"expected one of auto, ddp, ddp_find.*did you mean ddp"),
    ("++trainer.sync_batchnorm=true", r"for GPUs, and this run is on a CPU"),
    ("distributed_timeout=0", r"distributed_timeout=0: expected minutes above 0"),
    ("trainer.precision=16-mixed", r"half precision is for a GPU.*precision=bf16-mixed"),
    ("trainer.precision=16", r"half precision is for a GPU"),
    ("trainer.precision=16-true", r"half precision is for a GPU.*precision=bf16-true"),
    ("trainer.precision=fp8", r"precision=.*fp8"),
    ("model.num_classes=100", r"model\.num_classes=100, but digits has 10 classes"),
    ("model.num_classes=7", r"digits has 10 classes"),
    ("model.in_channels=1", r"model\.in_channels=1, but digits has 3"),
    ("model.image_size=[64,64]", r"model\.image_size=\[64, 64\], but digits has \[32, 32\]"),
    ("task.num_classes=100", r"task\.num_classes=100, but digits has 10 classes"),
    ("+task.test_views=flip", r"task\.test_views is for data\.test_views="),
    ("+trainer.callbacks=[]", r"trainer\.callbacks is for callbacks="),
    ("+trainer.enable_progress_bar=true", r"is for the harness"),
    ("+logger.csv._args_=[/elsewhere]", r"logger\.csv\._args_: arguments are given by their names"),
    ("+recipe.clipping=1.0", r"nothing reads recipe\.clipping.*trainer\.gradient_clip_val="),
    (
        "+recipe.optimiser.lr=1.0",
        r"nothing reads recipe\.optimiser\.lr; did you mean recipe\.optim",
    ),
    (f"model._target_={NET}", r"unexpected keyword argument 'num_classes'"),
    (f"data._target_={__name__}.OrdinaryData", r"expected a cvattn\.data\.module\.DataModule"),
    ("logger.csv=null +logger.w._target_=pytorch_lightning.loggers.WandbLogger", None),
]


@pytest.mark.sweep(12)
@pytest.mark.parametrize(("overrides", "message"), WRONG)
def test_it_is_refused_before_data_is_read(run, monkeypatch, overrides, message):
    from cvattn.data import DigitsData

    if message is None:
        monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
        message = r"logger\.w: wandb is not installed: pip install -e '\.\[trackers\]'"
    monkeypatch.setattr(DigitsData, "setup", lambda *_: pytest.fail("data was read"))
    with pytest.raises(ConfigError, match=message):
        run([*TINY, *overrides.split()])


LINES = ["model=reader", "data.train_size=80", "trainer.accelerator=cpu"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.target_vocab=9", r"target_vocab=9, but digit_lines has 13 tokens"),
        ("model.target_vocab=99", r"target_vocab=99, but digit_lines has 13 tokens"),
        ("model.height=48", r"height=48, but digit_lines has 32"),
        ("model.in_channels=3", r"in_channels=3, but digit_lines has 1"),
        ("model.pad_id=1", r"pad_id=1, but digit_lines has 0"),
        ("task.max_length=3", r"max_length=3, but digit_lines has"),
    ],
)
def test_what_lines_decide(composed, override, message):
    with pytest.raises(ConfigError, match=message):
        resolve(composed([*LINES, override]), [override])


def test_a_known_key_of_the_recipe_without_effect_is_said(composed):
    overrides = [*TINY, "recipe.epochs=7"]  # TINY has trainer.max_epochs=1
    cfg = composed(overrides)
    _, notes = resolve(cfg, overrides)
    assert any(note.startswith("recipe.epochs=7 has no effect here") for note in notes)
    overrides = ["data=digits", "recipe.epochs=7", "recipe.small.batch_size=25"]
    _, notes = resolve(composed(overrides), overrides)
    assert not any("no effect" in note for note in notes)


@pytest.mark.parametrize(
    ("given", "meant"), [("bf16", "bf16-mixed"), ("32", "32-true"), ("64", "64-true")]
)
def test_precisions_are_recorded_by_their_long_names(composed, given, meant):
    cfg = composed([*TINY, f"trainer.precision={given}"])
    resolve(cfg, [])
    assert cfg.trainer.precision == meant


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
@pytest.mark.parametrize("model", ["sagan", "vit"])
def test_true_precisions_run(run, tmp_path, precision, model):
    """The attention monitor, smaller images, the pictures, the count of operations."""
    import json

    vit = ["model=vit", "model.embed_dim=12", "model.num_heads=3", "model.num_layers=1"]
    network = TINY[1:3] if model == "sagan" else vit
    run(["data=digits", *network, *TINY[4:], f"trainer.precision={precision}"])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["precision"] == precision
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    wanted = torch.bfloat16 if precision == "bf16-true" else torch.float64
    assert saved["state_dict"]["network.head.weight"].dtype == wanted
    assert (tmp_path / "run" / "attention.png").exists()


def test_remarks_are_kept(run, tmp_path):
    import json

    run([*TINY, "notes='a second try'"])
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["notes"] == "a second try"
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["cvattn"]["meta"]["config"]["notes"] == "a second try"


@pytest.mark.parametrize("text", ["notes=why", "+notes=why", "notes=[why,how]"])
def test_remarks_may_be_given(text):
    assert text in check_command_line([*TINY, text], CONF)

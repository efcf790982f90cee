"""What is changed when a run is continued: it acts, or it is refused; files say what ran."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf, open_dict
from runs import CONF, TINY

from cvattn.harness import ConfigError, check_command_line, fit
from cvattn.harness.config.continuation import continued_config
from cvattn.harness.config.saved_run import open_run

SHORT = [*TINY[:-2], "trainer.limit_train_batches=2", "trainer.max_epochs=2"]


@pytest.fixture
def checkpoint(run, tmp_path) -> Path:
    """Of a run of one epoch, whose options are as they are for two."""
    run([*SHORT, "trainer.max_epochs=1"])
    return tmp_path / "run" / "checkpoints" / "last.ckpt"


@pytest.fixture
def go_on(composed, checkpoint):
    """``go_on(overrides)`` continues that run through the command line, as train.py does."""

    def run(*overrides: str) -> dict:
        arguments = check_command_line([f"ckpt_path={checkpoint}", *overrides], CONF)
        fit(composed([text for text in arguments if not text.startswith("hydra.run.dir")]))
        return torch.load(checkpoint, weights_only=True)

    return run


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_optimiser_values_act_and_are_recorded(go_on, checkpoint):
    """lr 0 and weight decay 0 in the second epoch: no weight moves; all files say so."""
    before = torch.load(checkpoint, weights_only=True)
    still = [f"recipe.optimizer.{lr}=0.0" for lr in ("lr", "head_lr", "vector_lr")]
    more = ["recipe.optimizer.momentum=0.25", "recipe.optimizer.betas=[0.5,0.75]"]
    after = go_on("trainer.max_epochs=2", *still, *more)
    for name, value in after["state_dict"].items():
        if name.endswith(("weight", "bias", "gamma")):
            assert torch.equal(value, before["state_dict"][name]), name
    for group in after["optimizer_states"][0]["param_groups"]:
        assert (group["lr"], group["momentum"], tuple(group["betas"])) == (0.0, 0.25, (0.5, 0.75))
    recorded = OmegaConf.load(checkpoint.parents[1] / "config.yaml")
    for config in (recorded, OmegaConf.create(after["cvattn"]["meta"]["config"])):
        assert config.recipe.optimizer.head_lr == config.task.optimizer.head_lr == 0.0


@pytest.mark.slow
def test_the_learning_rate_is_that_of_a_run_that_began_with_it(go_on):
    after = go_on("trainer.max_epochs=3", "recipe.optimizer.lr=0.08")
    (schedule,) = after["lr_schedulers"]
    rates = {
        group["role"]: (group["initial_lr"], base)
        for group, base in zip(
            after["optimizer_states"][0]["param_groups"], schedule["base_lrs"], strict=True
        )
    }
    assert rates["hidden"] == (0.08, 0.08)
    assert rates["vector"] == (0.01, 0.01)


@pytest.mark.slow
def test_more_epochs_are_said_to_lift_the_rate(go_on, capsys):
    go_on("trainer.max_epochs=2")
    said = " ".join(capsys.readouterr().out.split())
    assert "max_epochs was 1 and is 2" in said
    assert "rate rises again and small images come again" in said.replace("│ ", "").replace("│", "")


@pytest.mark.slow
def test_callbacks_may_be_chosen_anew_and_taken_out(go_on, checkpoint):
    after = go_on("callbacks=[default,early_stopping]", "trainer.max_epochs=2")
    assert after["cvattn"]["meta"]["choices"]["callbacks"] == ["default", "early_stopping"]
    assert any(key.startswith("EarlyStopping") for key in after["callbacks"])
    after = go_on(
        "~callbacks.attention", "callbacks.early_stopping.patience=3", "trainer.max_epochs=3"
    )
    assert "attention" not in after["cvattn"]["meta"]["config"]["callbacks"]
    (stopping,) = [v for k, v in after["callbacks"].items() if k.startswith("EarlyStopping")]
    assert stopping["patience"] == 3  # Lightning puts the checkpoint's own back


REFUSED = [
    ("model.widths=[8,8,8]", r"model\.widths=\[8, 8, 8\]: the run in .* has \[4, 8, 5\]"),
    ("model.attention=biggan", r"continued run keeps it"),
    ("trainer=ddp", r"trainer\.strategy=ddp trainer\.devices=2"),
    ("experiment=vit_long", r"experiment=vit_long: the run in .* has experiment=None"),
    ("data=cifar10", r"data=cifar10: the run in .* has data=digits"),
    ("recipe.optimizer._target_=torch.optim.AdamW", r"has cvattn\.tasks\.Muon"),
    ("task.num_classes=7", r"task\.num_classes=7, but digits has 10 classes"),
    ("~recipe.warmup", r"only callbacks and loggers can be taken out"),
    ("trainer.max_epoch=4", r"unknown key 'trainer\.max_epoch'; did you mean"),
    ("hydra.run.dir=elsewhere", r"To branch off, copy that folder"),
    ("run_dir=elsewhere", r"To branch off, copy that folder"),
    ("model.num_classes=100", r"has 10, and a continued run keeps it"),
    ("recipe.optimizer.lr=-1.0", r"lr=-1\.0 must be 0 or positive"),
    ("callbacks.attention.num_images=0", r"num_images=0 must be at least 1"),
    ("trainer.fast_dev_run=true", r"tries a batch in a run of its own"),
    ("data.batch_size=99 trainer.devices=2", r"not divisible by 2"),
]


@pytest.mark.slow
def test_what_is_refused_leaves_every_file_as_it_was(go_on, checkpoint):
    before = files(checkpoint.parents[1])
    for override, message in REFUSED:
        with pytest.raises(ConfigError, match=message):
            go_on("trainer.max_epochs=2", *override.split())
    assert files(checkpoint.parents[1]) == before


@pytest.mark.slow
def test_an_average_cannot_be_left_behind(run, composed, tmp_path):
    run([*SHORT, "trainer.max_epochs=1", "callbacks=[default,ema]"])
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    before = files(tmp_path / "run")
    for way in ("~callbacks.ema", "callbacks=default", "callbacks=[]"):
        arguments = check_command_line([f"ckpt_path={last}", way, "trainer.max_epochs=2"], CONF)
        with pytest.raises(ConfigError, match=r"\(callbacks\.ema\) cannot be taken out"):
            fit(composed([text for text in arguments if not text.startswith("hydra")]))
    assert files(tmp_path / "run") == before


@pytest.mark.slow
def test_keys_that_only_this_run_has_can_be_set_again(run, composed, tmp_path):
    """And valid keys of the trainer that no file lists need no plus, then or now."""
    run([*SHORT, "++trainer.max_time=00:00:30:00", "trainer.max_epochs=1"])
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    arguments = check_command_line(
        [f"ckpt_path={last}", "trainer.max_time=null", "trainer.min_steps=1"], CONF
    )
    overrides = [text for text in arguments if not text.startswith("hydra")]
    cfg = continued_config(open_run(str(last)), composed(overrides) and overrides)
    assert (cfg.trainer.max_time, cfg.trainer.min_steps) == (None, 1)


@pytest.mark.slow
def test_data_that_changed_is_noticed(go_on, checkpoint, monkeypatch):
    """Each fact of it: the class names, their order, sizes, mean and std, pixels, counts."""
    import dataclasses

    from cvattn.data import DigitsData

    honest = DigitsData.describe
    names = tuple(str(i) for i in range(10))
    before = files(checkpoint.parents[1])
    for change, message in [
        ({"classes": (*names[:9], "nine")}, "classes"),
        ({"classes": (names[1], names[0], *names[2:])}, "classes"),
        ({"mean": (0.5, 0.5, 0.5)}, "mean"),
        ({"std": (0.5, 0.5, 0.5)}, "std"),
        ({"fingerprint": "0123456789abcdef"}, "fingerprint"),
        ({"train_size": 1256}, "train size"),
        ({"val_size": 181}, "val size"),
    ]:
        monkeypatch.setattr(
            DigitsData, "describe", lambda self, c=change: dataclasses.replace(honest(self), **c)
        )
        with pytest.raises(ConfigError, match=rf"data: {message} of digits .* put it back"):
            go_on("trainer.max_epochs=2")
    assert files(checkpoint.parents[1]) == before


def leaves(node, path=""):
    for key, value in node.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            yield from leaves(value, name)
        else:
            yield name


def another(value):
    """Of the same type, so that the change means something."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1 if isinstance(value, int) else value * 0.5 + 0.26
    if isinstance(value, list) and value and not isinstance(value[0], str):
        return [another(one) for one in value]
    return None


@pytest.mark.parametrize(
    "choice", ["sagan", *(pytest.param(x, marks=pytest.mark.slow) for x in ("vit", "timm"))]
)
def test_every_key_acts_or_is_refused(composed, choice, tmp_path):
    """Each key of conf/ in turn, with another value: what is recorded is what is built."""
    from cvattn import checkpoint as files_of
    from cvattn.harness.config.resolve import resolve
    from cvattn.models import SAGANClassifier

    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    cfg = composed(["data=digits", f"model={choice}", "callbacks=[default,early_stopping,ema]"])
    resolve(cfg, [])
    with open_dict(cfg):
        cfg.ckpt_path = None
    source = OmegaConf.to_container(cfg, resolve=False)
    resolved = OmegaConf.to_container(cfg, resolve=True)
    meta = {"source_config": source, "config": resolved, "choices": {"model": choice}}
    files_of.save(path, SAGANClassifier(5, widths=(1, 1, 1)), args={}, meta=meta)
    acted, refused, inert = [], [], []
    for key in leaves(source):
        shown = OmegaConf.select(cfg, key)
        new = another(OmegaConf.to_container(shown) if OmegaConf.is_config(shown) else shown)
        if new is None or key in ("ckpt_path", "run_dir"):
            continue
        try:
            changed = continued_config(open_run(str(path)), [f"{key}={json.dumps(new)}"], cfg)
            resolve(changed, [])
        except ConfigError:
            refused.append(key)
            continue
        now = OmegaConf.to_container(changed, resolve=True)
        assert OmegaConf.select(changed, key) == new
        built = ("data", "task", "model", "trainer", "callbacks", "logger", "seed", "compile")
        built += ("distributed_timeout",)
        (acted if any(now[k] != resolved[k] for k in built) else inert).append(key)
    assert {k for k in acted if k.startswith("model.")} == set()
    assert inert == [], "accepted, recorded, and nothing comes of it"
    assert len(acted) > 40
    assert len(refused) > 4

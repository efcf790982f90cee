from collections.abc import Sequence
from typing import Literal

import pytest
from omegaconf import open_dict
from runs import CONF, TINY

from cvattn.harness import ConfigError
from cvattn.harness.config.checks import fits
from cvattn.harness.config.resolve import resolve


@pytest.mark.sweep(12)
@pytest.mark.parametrize("model", ["sagan", "vit", "timm"])
@pytest.mark.parametrize("data", ["digits", "cifar10", "cifar100", "fashion_mnist"])
@pytest.mark.parametrize("trainer", ["auto", "ddp"])
@pytest.mark.parametrize("logger", ["csv", "tensorboard"])
def test_every_choice_binds_to_what_it_calls(composed, model, data, trainer, logger, tmp_path):
    overrides = [f"model={model}", f"data={data}", f"trainer={trainer}", f"logger={logger}"]
    if data != "digits":
        overrides.append(f"data.root={tmp_path}")
    resolve(composed(overrides), overrides)


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    "choice", [f"experiment={path.stem}" for path in sorted((CONF / "experiment").glob("*.yaml"))]
)
def test_every_experiment_binds_and_the_command_line_wins(composed, choice, tmp_path):
    overrides = [choice, "recipe.epochs=3"]
    if "root" in composed(overrides).data:
        overrides.append(f"data.root={tmp_path}")
    cfg = composed(overrides)
    resolve(cfg, overrides)
    assert cfg.trainer.max_epochs == 3


@pytest.mark.parametrize(
    "choice", [path.stem for path in sorted((CONF / "callbacks").glob("*.yaml"))]
)
def test_every_callback_joins_the_default_ones(composed, choice):
    overrides = ["data=digits", f"callbacks=[default,{choice}]"]
    maker = {"samples": "unet", "made": "sagan_gan"}.get(choice, "sagan")  # whose task makes some
    overrides.append(f"model={maker}")
    cfg = composed(overrides)
    resolve(cfg, overrides)
    assert {"best", "last", "attention"} <= set(cfg.callbacks)


@pytest.mark.parametrize("data", ["cifar10", "fashion_mnist", "folder"])
def test_what_makes_images_learns_from_images_as_they_are(composed, data):
    """The recipe says so; other recipes leave it to the data, and the command line wins."""
    chosen = composed(["model=unet", f"data={data}"]).data
    assert (chosen.crop_pad, chosen.flip) == (0, "none")
    chosen = composed(["model=sagan", f"data={data}"]).data
    assert chosen.crop_pad > 0
    assert chosen.flip != "none"
    chosen = composed(["model=unet", f"data={data}", "data.crop_pad=1", "data.flip=random"]).data
    assert (chosen.crop_pad, chosen.flip) == (1, "random")


WRONG = [
    ("model.widths=abc", r"model\.widths='abc': expected a list of int"),
    ("model.attention=true", r"model\.attention=True: expected one of common, pooled"),
    ("model.attention=bigan", r"expected one of common, pooled, biggan"),
    ("recipe.optimizer.lr=abc", r"optimizer\.lr='abc': expected float"),
    ("trainer.max_epochs=many", r"trainer\.max_epochs='many'"),
    ("recipe.batch_size=2.5", r"data\.batch_size=2\.5: expected int"),
    ("seed=one", r"seed='one': expected int or null"),
    ("compile=1", r"compile=1: expected bool"),
    ("+model.depth=3", r"model\.depth: SAGANClassifier has no such argument"),
    ("+trainer.max_epoch=3", r"did you mean max_epochs"),
    ("+recipe.optimizer.learning_rate=3", r"Muon has no such argument"),
    ("+extra=1", r"unknown key 'extra'"),
    (
        "model._target_=cvattn.models.SAGANClasifier",
        r"no 'SAGANClasifier'; did you mean SAGANClassifier\?",
    ),
    ("model._target_=os.system", r"expected a torch\.nn"),
    ("model._target_=torch.load", r"expected a torch\.nn"),
    ("recipe.optimizer._target_=torch.nn.Linear", r"optimizer\._target_=torch\.nn\.Linear"),
    ("+callbacks.evil._target_=os.system", r"expected a pytorch_lightning.*Callback"),
    ("+recipe.evil._target_=os.system", r"recipe\.evil has a _target_"),
    ("callbacks.attention.num_images=none", r"num_images='none': expected int"),
]


@pytest.mark.sweep(7)
@pytest.mark.parametrize(("override", "message"), WRONG)
def test_wrong_values_are_named_before_data_is_touched(composed, monkeypatch, override, message):
    from cvattn.data import DigitsData

    monkeypatch.setattr(DigitsData, "setup", lambda *_: pytest.fail("data was read"))
    overrides = [*TINY, "recipe.small=null", override]
    with pytest.raises(ConfigError, match=message):
        resolve(composed(overrides), overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.embed_dim=100 model.num_heads=12", r"nearest that are: 96, 108"),
        ("model.patch_size=5", r"not divisible by patch_size=5"),
        ("model.patch_size=1", r"needs a patch_size of 2, 4, 8"),
    ],
)
def test_what_a_constructor_says_comes_out_as_it_is(run, override, message):
    with pytest.raises(ConfigError, match=message):
        run(["data=digits", "model=vit", *override.split()])


def test_too_few_classes(composed):
    cfg = composed(TINY)
    with open_dict(cfg):
        cfg.model.num_classes = 7
    with pytest.raises(ConfigError, match="digits has 10 classes"):
        resolve(cfg, TINY)


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, float, True),
        (True, float, False),
        (True, int, False),
        (1.0, int, False),
        ("1", int, False),
        (None, int | None, True),
        ([1, 2], tuple[int, int], True),
        ([1, 2, 3], tuple[int, int], False),
        ([1, "a"], Sequence[int], False),
        ("ab", Sequence[int], False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        ({"a": 1}, dict[str, int], True),
    ],
)
def test_fits(value, annotation, expected):
    assert fits(value, annotation) is expected

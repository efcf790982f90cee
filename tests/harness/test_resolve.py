import pytest
from omegaconf import OmegaConf
from runs import TINY

from cvattn.harness.config.resolve import resolve


def test_open_values_are_filled_from_the_data(composed):
    cfg = composed(["data=digits", "model=vit"])
    resolve(cfg, [])
    assert cfg.model.num_classes == 10
    assert cfg.model.in_channels == 3
    assert list(cfg.model.image_size) == [32, 32]
    assert cfg.task.num_classes == 10


def test_small_data_gets_the_small_values_and_what_was_said_stays(composed):
    overrides = ["data=digits", "model=sagan", "recipe.epochs=7"]
    cfg = composed(overrides)
    small = OmegaConf.to_container(cfg.recipe.small)
    assert small["epochs"] != 7
    data, notes = resolve(cfg, overrides)
    assert cfg.recipe.epochs == 7
    assert cfg.trainer.max_epochs == 7
    assert data.batch_size == small["batch_size"]
    assert any("small values" in note for note in notes)


def test_large_data_keeps_the_large_values(composed, tmp_path):
    overrides = ["data=cifar10", f"data.root={tmp_path}", "model=sagan"]
    cfg = composed(overrides)
    wanted = cfg.recipe.epochs
    _, notes = resolve(cfg, overrides)
    assert cfg.recipe.epochs == wanted
    assert "small" not in cfg.recipe
    assert notes == []


def test_auto_falls_back_to_digits_and_says_why(composed, monkeypatch, tmp_path):
    monkeypatch.setenv("CVATTN_OFFLINE", "1")
    monkeypatch.setenv("CVATTN_DECISIONS", "{}")
    overrides = [f"data.root={tmp_path}"]
    cfg = composed(overrides)
    data, notes = resolve(cfg, overrides)
    assert type(data).__name__ == "DigitsData"
    assert "root" not in cfg.data
    assert "data=auto" in notes[0]


def test_auto_takes_cifar10_where_it_is(composed, monkeypatch, cifar10_root):
    monkeypatch.setenv("CVATTN_DECISIONS", "{}")
    cfg = composed([f"data.root={cifar10_root}"])
    data, _ = resolve(cfg, [])
    assert type(data).__name__ == "CIFAR10Data"
    assert cfg.data.root == str(cifar10_root)


def test_auto_is_decided_once_for_all_processes(composed, monkeypatch, tmp_path):
    import cvattn.data
    from cvattn.data import Choice

    monkeypatch.setenv("CVATTN_DECISIONS", "{}")
    asked = []
    monkeypatch.setattr(
        cvattn.data, "choose", lambda *a, **k: asked.append(1) or Choice("digits", "because")
    )
    for _ in range(2):
        _, notes = resolve(composed([f"data.root={tmp_path}"]), [])
        assert "because" in notes[0]
    assert asked == [1]


@pytest.mark.parametrize(("model", "batch_size"), [("sagan", 500), ("vit", 250), ("timm", 128)])
def test_a_model_brings_its_recipe(composed, model, batch_size):
    assert composed([f"model={model}"]).recipe.batch_size == batch_size
    cfg = composed([f"model={model}", "recipe=timm"])
    assert cfg.recipe.batch_size == 128
    assert cfg.recipe.optimizer._target_ == "torch.optim.AdamW"


def test_epochs_follow_the_trainer(composed):
    cfg = composed([*TINY, "trainer.max_epochs=3"])
    resolve(cfg, ["trainer.max_epochs=3"])
    assert cfg.trainer.max_epochs == 3

"""A checkpoint's configuration may be somebody else's: what it writes, reads and imports."""

import sys

import pytest
import torch
from omegaconf import OmegaConf
from runs import CONF, TINY

from cvattn import checkpoint
from cvattn.harness import ConfigError, check_command_line
from cvattn.harness.config.continuation import continued_config
from cvattn.harness.config.resolve import resolve
from cvattn.harness.config.saved_run import open_run, open_training
from cvattn.models import SAGANClassifier


@pytest.fixture
def offered(composed, tmp_path):
    """``offered(changes, overrides)``: what continuing a file with these changes makes of it."""

    def make(changes: dict, *overrides: str):
        path = tmp_path / "run" / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        cfg = composed(TINY)
        resolve(cfg, TINY)
        for key, value in changes.items():
            OmegaConf.update(cfg, key, value, force_add=True)
        choices = {"data": "digits", "model": "sagan", "callbacks": "default", "logger": "csv"}
        source = OmegaConf.to_container(cfg, resolve=False)
        meta = {"source_config": source, "config": {}, "choices": choices}
        checkpoint.save(path, SAGANClassifier(5, widths=(1, 1, 1)), args={}, meta=meta)
        arguments = check_command_line([f"ckpt_path={path}", *overrides], CONF)
        given = [text for text in arguments if not text.startswith("hydra")]
        return continued_config(open_run(str(path)), given, composed(given))

    return make


def test_what_every_run_has_is_trusted(offered):
    offered({})


ELSEWHERE = "writes outside the run's folder"
CHANGES = [
    ({"logger.csv.path": "/elsewhere/over.csv"}, ELSEWHERE),
    ({"logger.csv.path": "over.csv"}, ELSEWHERE),
    ({"logger.csv.path": "${run_dir}/../../over.csv"}, ELSEWHERE),
    ({"logger.csv.path": "~/over.csv"}, ELSEWHERE),
    ({"callbacks.best.dirpath": "/elsewhere"}, ELSEWHERE),
    ({"callbacks.best.filename": "../../over"}, ELSEWHERE),
    ({"callbacks.best.filename": "/elsewhere/over"}, ELSEWHERE),
    ({"trainer.default_root_dir": "/elsewhere"}, ELSEWHERE),
    (
        {
            "logger.two._target_": "pytorch_lightning.loggers.CSVLogger",
            "logger.two.save_dir": "/elsewhere",
        },
        ELSEWHERE,
    ),
    (
        {
            "logger.two._target_": "pytorch_lightning.loggers.MLFlowLogger",
            "logger.two.save_dir": "${run_dir}",
            "logger.two.tracking_uri": "http://elsewhere",
        },
        ELSEWHERE,
    ),
    ({"logger.two._target_": "pytorch_lightning.loggers.WandbLogger"}, "says no folder"),
    (
        {"logger.two._target_": "cvattn.harness.CSVLog", "logger.two._args_": ["/elsewhere/x"]},
        ELSEWHERE,
    ),
    ({"notes": "${oc.env:SECRET}"}, "looks outside itself"),
    ({"notes": "${ oc.env : SECRET}"}, "looks outside itself"),
    ({"notes": "x ${oc.select:seed,${oc.env:SECRET}}"}, "looks outside itself"),
    ({"name": "oc.env", "notes": "${${name}:SECRET}"}, "looks outside itself"),
    ({"recipe.secret": ["a", {"b": "${oc.env:SECRET}"}]}, "looks outside itself"),
    ({"model.widths": "${oc.decode:${oc.env:SECRET}}"}, "looks outside itself"),
    ({"callbacks.evil._target_": "evil_module.Thing"}, "not of this package"),
    ({"data._target_": "evil_module.Thing"}, "not of this package"),
    ({"data.transforms": [{"_target_": "evil_module.Thing"}]}, "not of this package"),
    (
        {"data.transforms": [{"_target_": "torchvision.transforms.v2.functional.x"}]},
        "not of this package",
    ),
    ({"task._target_": "evil_module.Thing"}, "not of this package"),
    ({"recipe.optimizer._target_": "evil_module.Thing"}, "not of this package"),
    ({"trainer._target_": "evil_module.Trainer"}, "not of this package"),
    ({"callbacks.evil._target_": "cvattn.__main__.main"}, "not of this package"),
    ({"callbacks.evil._target_": "this.s"}, "not of this package"),
    ({"callbacks.evil._target_": "pytorch_lightning.demos.boring_classes.X"}, "not of this"),
]


@pytest.mark.sweep(7)
@pytest.mark.parametrize(("changes", "message"), CHANGES)
def test_what_a_file_asks_for_beyond_its_run_is_refused(
    offered, monkeypatch, tmp_path, changes, message
):
    monkeypatch.setenv("SECRET", "sesame")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil_module.py").write_text("raise SystemExit('its code ran')")
    with pytest.raises(ConfigError, match=message) as error:
        offered(changes)
    assert "sesame" not in str(error.value)
    assert "evil_module" not in sys.modules


def test_what_the_command_line_says_too_is_the_users(offered, tmp_path):
    place = tmp_path / "mine"
    cfg = offered({"callbacks.best.dirpath": str(place)}, f"callbacks.best.dirpath={place}")
    assert cfg.callbacks.best.dirpath == str(place)
    cfg = offered({"notes": "${oc.env:SECRET}"}, "notes=none")
    assert cfg.notes == "none"
    own = "+callbacks.own._target_=pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor"
    cfg = offered({"callbacks.own._target_": own.partition("=")[2]}, own)
    assert "own" in cfg.callbacks


def test_transforms_of_torchvision_are_trusted(offered):
    blur = {"_target_": "torchvision.transforms.v2.GaussianBlur", "kernel_size": 3}
    some = {"_target_": "torchvision.transforms.v2.RandomApply", "transforms": [blur]}
    assert offered({"data.transforms": [some]}).data.transforms == [some]


def test_a_place_within_the_run_is_the_runs(offered):
    cfg = offered(
        {
            "callbacks.steps._target_": "pytorch_lightning.callbacks.ModelCheckpoint",
            "callbacks.steps.dirpath": "${run_dir}/steps",
        }
    )
    assert cfg.callbacks.steps.dirpath.endswith("run/steps")


@pytest.mark.parametrize("missing", ["epoch", "optimizer_states", "loops", "global_step"])
def test_a_checkpoint_without_the_state_of_training(tmp_path, missing):
    path = tmp_path / "last.ckpt"
    content = dict.fromkeys(("epoch", "global_step", "optimizer_states", "lr_schedulers", "loops"))
    del content[missing]
    meta = {"source_config": {}, "choices": {}}
    entry = {"format": 1, "model": "SAGANClassifier", "args": {}, "meta": meta}
    torch.save({**content, "cvattn": entry, "state_dict": {}}, path)
    with pytest.raises(ConfigError, match=rf"has no {missing}: .*save_weights_only"):
        open_training(str(path))


def test_a_checkpoint_without_choices(tmp_path):
    path = tmp_path / "last.ckpt"
    meta = {"source_config": {}}
    checkpoint.save(path, SAGANClassifier(5, widths=(1, 1, 1)), args={}, meta=meta)
    with pytest.raises(ConfigError, match="without the state of a training run"):
        check_command_line([f"ckpt_path={path}"], CONF)

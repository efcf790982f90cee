"""Going on within an epoch, in a folder that was moved, and from checkpoints that users ask for."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from killing import differences, draw_images, outcome, small_run
from pytorch_lightning.callbacks import ModelCheckpoint

from cvattn.harness import ConfigError, LastCheckpoint, fit
from cvattn.harness.position import Position, position_of
from cvattn.harness.reporting.csv_log import read_metrics
from cvattn.tasks import ClassificationTask

STEPS = [
    "+callbacks.step._target_=pytorch_lightning.callbacks.ModelCheckpoint",
    *("+callbacks.step.save_top_k=-1", "+callbacks.step.dirpath=${run_dir}/steps"),
    *('+callbacks.step.filename="s{step:03d}"', "+callbacks.step.auto_insert_metric_name=false"),
]


class Stop(Exception):
    """In place of a kill, in this process."""


@pytest.fixture
def go(composed, tmp_path):
    """``go(folder, overrides)``: a run of ``small_run`` in a folder of ``tmp_path``."""
    draw_images(tmp_path / "images")

    def run(name: str, *overrides: str, ckpt: str | None = None) -> Path:
        given = small_run(tmp_path / "images") if ckpt is None else []
        path = [] if ckpt is None else [f"ckpt_path={tmp_path / name / ckpt}"]
        cfg = composed([*given, *overrides, *path])
        cfg.run_dir = str(tmp_path / name)
        fit(cfg)
        return tmp_path / name

    return run


def without_steps(found: dict) -> dict:
    """The checkpoints of each step are other ones after a stop: older ones stay."""
    found["files"] = [name for name in found["files"] if not name.startswith("steps")]
    for key in [key for key in found["callbacks"] if "every_n_train_steps': 0" not in key]:
        if key.startswith("ModelCheckpoint"):
            del found["callbacks"][key]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        pytest.param([], id="plain"),
        # 9 batches are 5 steps: two of 4 batches, and one of the last.
        pytest.param(
            ["trainer.accumulate_grad_batches=4"], id="accumulated", marks=pytest.mark.slow
        ),
        pytest.param(
            ["++trainer.val_check_interval=4"], id="validated_within", marks=pytest.mark.slow
        ),
        pytest.param(
            ["trainer.check_val_every_n_epoch=2"], id="every_second_epoch", marks=pytest.mark.slow
        ),
    ],
)
def test_from_each_checkpoint_of_a_step(go, tmp_path, more):
    whole = go("whole", *STEPS, "+callbacks.step.every_n_train_steps=1", *more)
    expected = without_steps(outcome(whole))
    files = sorted(path.name for path in (whole / "steps").iterdir())
    assert len(files) == (6 if "trainer.accumulate_grad_batches=4" in more else 18)
    # Within an epoch, in its last step before the validation, in the last one of all.
    for name in {files[1], files[len(files) // 2 - 1], files[-1]}:
        saved = torch.load(whole / "steps" / name, weights_only=True)
        position = position_of(saved)
        assert not position.closed
        shutil.rmtree(tmp_path / "cut", ignore_errors=True)
        shutil.copytree(whole, tmp_path / "cut")
        (tmp_path / "cut" / "summary.json").unlink()
        (tmp_path / "cut" / "metrics.csv").unlink()
        cut = go("cut", ckpt=f"steps/{name}")
        assert differences(expected, without_steps(outcome(cut))) == [], (name, position)


@pytest.mark.slow
def test_between_two_accumulated_batches(go, tmp_path, monkeypatch):
    """By time: Lightning saves with gradients that no step has used."""
    accumulated = "trainer.accumulate_grad_batches=4"
    whole = go("whole", accumulated)
    honest = ClassificationTask.training_step

    def saving(self, batch, batch_idx):
        if self.trainer.current_epoch == 1 and batch_idx == 7:
            raise Stop
        return honest(self, batch, batch_idx)

    def always(self, trainer, pl_module, outputs, batch, batch_idx):
        if not trainer.is_last_batch:
            ModelCheckpoint._save_checkpoint(self, trainer, self.dirpath + "/last.ckpt")

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "training_step", saving)
        patch.setattr(LastCheckpoint, "on_train_batch_end", always)
        with pytest.raises(Stop):
            go("cut", accumulated)
    saved = torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)
    assert position_of(saved) == Position(1, 7, validated=False, closed=False)
    assert saved["run"]["gradients"]
    cut = go("cut", ckpt="checkpoints/last.ckpt")
    assert differences(outcome(whole), outcome(cut)) == []


@pytest.mark.slow
def test_more_steps_go_on_in_the_same_epoch(go):
    """With a constant rate 5 steps and then 13 are 13 in one go, in 9 batches an epoch."""
    constant = ["recipe.warmup=0.0", "recipe.final=1.0", "recipe.resizing=[]"]
    steps = ["trainer.max_epochs=null", "trainer.max_steps=5"]
    whole = go("whole", *constant, "trainer.max_epochs=null", "trainer.max_steps=13")
    go("cut", *constant, *steps)
    cut = go("cut", "trainer.max_steps=13", ckpt="checkpoints/last.ckpt")
    one, other = outcome(whole), outcome(cut)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "metrics", "epoch"):
        assert differences(one[key], other[key]) == [], key  # but 5 steps were validated, too
    for key in ("images_by_size", "test", "val", "gamma"):
        assert one["summary"][key] == other["summary"][key]
    assert list(read_metrics(cut / "metrics.csv")) == [0, 1]


@pytest.mark.slow
def test_a_moved_run_keeps_its_best(go, tmp_path, monkeypatch):
    folder = go("here")
    best = json.loads((folder / "summary.json").read_text())["criterion"]["best"]
    before = (folder / "checkpoints" / "best.ckpt").read_bytes()
    shutil.move(folder, tmp_path / "there")
    honest = ClassificationTask.validation_step

    def worse(self, batch, batch_idx):
        images, labels = batch
        honest(self, (images, 1 - labels), batch_idx)

    monkeypatch.setattr(ClassificationTask, "validation_step", worse)
    folder = go("there", "trainer.max_epochs=3", ckpt="checkpoints/last.ckpt")
    assert json.loads((folder / "summary.json").read_text())["criterion"]["best"] == best
    assert (folder / "checkpoints" / "best.ckpt").read_bytes() == before
    assert not (tmp_path / "here").exists()


def test_an_epoch_that_is_cut_into_others_is_refused(go, tmp_path):
    go("run", *STEPS, "+callbacks.step.every_n_train_steps=4")
    with pytest.raises(ConfigError, match="in epoch 1, after its batch 4 of 9, and an epoch now"):
        go("run", "trainer.limit_train_batches=6", ckpt="steps/s004.ckpt")


@pytest.mark.slow
def test_a_run_that_stopped_early_is_over(go, monkeypatch):
    """Killed in its test it is tested, and not trained on."""
    early = ["callbacks=[default,early_stopping]", "callbacks.early_stopping.patience=1"]
    early += ["callbacks.early_stopping.min_delta=1.0", "trainer.max_epochs=6"]
    whole = go("whole", *early)
    assert json.loads((whole / "summary.json").read_text())["epochs"] == 2

    def stop(self, batch, batch_idx):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "test_step", stop)
        with pytest.raises(Stop):
            go("cut", *early)
    cut = go("cut", ckpt="checkpoints/last.ckpt")
    assert differences(outcome(whole), outcome(cut)) == []


@pytest.mark.slow
def test_averaged_weights_are_tested_when_only_the_test_is_left(go, monkeypatch):
    ema = ["callbacks=[default,ema]", "callbacks.ema.decay=0.9"]
    whole = go("whole", *ema)

    def stop(self, batch, batch_idx):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "test_step", stop)
        with pytest.raises(Stop):
            go("cut", *ema)
    cut = go("cut", ckpt="checkpoints/last.ckpt")
    assert differences(outcome(whole), outcome(cut)) == []

"""The trainer's keys act with our loaders, and no figure is shown as one of another epoch."""

import json

import pytest
import torch
from runs import TINY

from cvattn.data import DigitsData, StringsData
from cvattn.harness.reporting.csv_log import read_metrics
from cvattn.tasks import ClassificationTask

ALL = [o for o in TINY if not o.startswith("trainer.limit")]  # 12 batches of 100, 2 of validation


@pytest.fixture
def labels(monkeypatch):
    """Those of each training batch, and how many batches were validated and tested on."""
    seen = {"train": [], "val": 0, "test": 0}
    train, val, test = (
        getattr(ClassificationTask, f"{part}_step") for part in ("training", "validation", "test")
    )

    def training(self, batch, batch_idx):
        seen["train"].append((self.current_epoch, batch[0].sum().item(), batch[1].tolist()))
        return train(self, batch, batch_idx)

    def validation(self, batch, batch_idx):
        seen["val"] += 1
        val(self, batch, batch_idx)

    def tested(self, batch, batch_idx):
        seen["test"] += 1
        test(self, batch, batch_idx)

    monkeypatch.setattr(ClassificationTask, "training_step", training)
    monkeypatch.setattr(ClassificationTask, "validation_step", validation)
    monkeypatch.setattr(ClassificationTask, "test_step", tested)
    return seen


def test_overfit_batches_are_the_same_in_each_epoch(run, labels):
    run([*ALL, "trainer.overfit_batches=2", "trainer.max_epochs=3"])
    by_epoch = [[one[1:] for one in labels["train"] if one[0] == epoch] for epoch in range(3)]
    assert by_epoch[0] == by_epoch[1] == by_epoch[2]
    assert len(by_epoch[0]) == 2
    assert by_epoch[0][0] != by_epoch[0][1]
    assert len(set(by_epoch[0][0][1])) > 5  # not sorted by class


def test_samples_that_are_drawn_anew_are_the_same_ones_too():
    class Trainer:
        overfit_batches, current_epoch, global_rank, world_size = 1, 3, 0, 1

        class fit_loop:
            class epoch_loop:
                class batch_progress:
                    class current:
                        ready = 0

    data = StringsData(batch_size=7)
    first = next(iter(data.train_dataloader()))
    data.trainer = Trainer
    again = next(iter(data.train_dataloader()))
    assert torch.equal(first[1], again[1])
    Trainer.overfit_batches = 0.0
    assert not torch.equal(first[1], next(iter(data.train_dataloader()))[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "train", "val", "test"),
    [
        ("trainer.limit_train_batches=3", 3, 2, 1),
        ("trainer.limit_train_batches=0.25", 3, 2, 1),
        ("trainer.limit_val_batches=1", 12, 1, 1),
        ("trainer.limit_val_batches=0", 12, 0, 1),
        ("trainer.limit_test_batches=0", 12, 2, 0),
        ("trainer.fast_dev_run=2", 2, 2, 2),
        ("trainer.max_steps=5", 5, 2, 1),
    ],
)
def test_limits(run, labels, override, train, val, test):
    batches = {part: len(getattr(DigitsData(), f"{part}_dataloader")()) for part in ("val", "test")}
    run([*ALL, override])
    val = min(val, batches["val"]) if val else 0
    test = min(test, batches["test"]) if test else 0
    assert (len(labels["train"]), labels["val"], labels["test"]) == (train, val, test)


@pytest.mark.slow
def test_accumulated_gradients_make_fewer_steps(run, tmp_path):
    run([*ALL, "trainer.accumulate_grad_batches=5"])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["images"], summary["steps"]) == (1200, 3)


@pytest.mark.slow
def test_an_epoch_without_validation_shows_none(run, tmp_path, capsys):
    best = run([*TINY, "trainer.check_val_every_n_epoch=3", "trainer.max_epochs=4"])
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [epoch for epoch, row in rows.items() if "val/accuracy" in row] == [2]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert [" val " in line for line in lines] == [False, False, True, False]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["val"] == {}
    assert summary["criterion"]["best"] == best == pytest.approx(rows[2]["val/accuracy"])
    saved = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert saved["epoch"] == 2


def test_a_run_without_validation_has_no_figure_of_it(run, tmp_path):
    run([*TINY, "trainer.limit_val_batches=0", "trainer.max_epochs=2"])

    def refuse(text):
        raise AssertionError(f"{text} is not JSON")

    text = (tmp_path / "run" / "summary.json").read_text()
    summary = json.loads(text, parse_constant=refuse)
    assert summary["criterion"]["best"] is None
    assert summary["val"] == {}

"""Runs that learn to make images: judged by their loss, continued exactly, the same every time."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import cvattn
from cvattn.harness import ConfigError
from cvattn.harness.reporting.csv_log import read_metrics
from cvattn.inference import Way, open_generator
from cvattn.inference.grids import image_grid
from cvattn.tasks import FlowTask

FLOW = [
    *("data=digits", "model=unet", "model.patch_size=4", "model.width=4"),
    *("model.multipliers=[1,2]", "model.attention_at=[1]", "recipe.epochs=2"),
    *("trainer.precision=32-true", "trainer.accelerator=cpu", "trainer.limit_train_batches=3"),
    *("callbacks.samples.steps=2", "callbacks.samples.rows=1"),
]


class Stop(Exception):
    """In place of a kill, in this process."""


def parameters(folder):
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return content["state_dict"]


def test_a_run_is_judged_by_its_loss_and_leaves_pictures(run, tmp_path, capsys):
    score = run(FLOW)
    folder = tmp_path / "run"
    summary = json.loads((folder / "summary.json").read_text())
    rows = read_metrics(folder / "metrics.csv")
    best = min(row["val/loss"] for row in rows.values())
    assert summary["criterion"] == {
        "metric": "val/loss",
        "mode": "min",
        "best": pytest.approx(best),
    }
    assert score == pytest.approx(-best)
    assert summary["test"].keys() == {"loss"}
    assert "test_views" not in summary
    assert summary["weights"] == "averaged"
    pictures = ["samples.png", "samples/epoch_001.png", "samples/epoch_002.png", "curves.png"]
    for name in pictures:
        assert (folder / name).read_bytes().startswith(b"\x89PNG"), name
    network = cvattn.load(folder / "checkpoints" / "last.ckpt")
    assert (network.classes, network.timed, network.patch_size) == (10, True, 4)
    # The picture is of the weights that are kept: the averaged ones.
    generator = open_generator(folder / "checkpoints" / "last.ckpt")
    pixels, _ = generator.sample(10, way=Way(steps=2))
    with Image.open(folder / "samples" / "epoch_002.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(image_grid(pixels, 10)))
    printed = capsys.readouterr().out
    assert f"val {best:.4f}" in printed
    assert "python -m cvattn sample" in printed
    assert "evaluate" not in printed


@pytest.mark.slow
def test_equal_seeds_make_equal_samples_also_when_a_run_was_stopped(run, tmp_path, monkeypatch):
    run(FLOW)
    whole, picture = parameters(tmp_path / "run"), (tmp_path / "run" / "samples.png").read_bytes()
    (tmp_path / "run").rename(tmp_path / "whole")
    run(FLOW)
    again = parameters(tmp_path / "run")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert (tmp_path / "run" / "samples.png").read_bytes() == picture
    (tmp_path / "run").rename(tmp_path / "again")
    step, calls = FlowTask.training_step, []

    def stopped(self, batch, batch_idx):
        calls.append(batch_idx)
        if len(calls) == 5:
            raise Stop
        return step(self, batch, batch_idx)

    monkeypatch.setattr(FlowTask, "training_step", stopped)
    with pytest.raises(Stop):
        run(FLOW)
    run([f"ckpt_path={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"])
    assert calls == [0, 1, 2, 0, 1, 0, 1, 2]
    continued = parameters(tmp_path / "run")
    assert all(torch.equal(whole[name], continued[name]) for name in whole)
    assert (tmp_path / "run" / "samples.png").read_bytes() == picture


def test_a_network_that_is_told_no_class(run, tmp_path):
    run([*FLOW, "model.classes=0", "recipe.epochs=1"])
    assert cvattn.load(tmp_path / "run" / "checkpoints" / "last.ckpt").classes == 0


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.classes=7"], "model.classes=7, but digits has 10 classes"),
        (["model.timed=false"], "UNet makes no images"),
        (["data=cifar10", "data.test_views=flip"], "FlowTask has no use for it"),
        (["model.classes=0", "callbacks.samples.guidance=2"], "the network is told none"),
        (["callbacks.samples.rows=0"], "rows=0 must be at least 1"),
        (["model.patch_size=5"], "both have to be divisible by 10"),
    ],
)
def test_what_cannot_be_is_refused_before_training(run, overrides, said):
    given = [text for text in FLOW if not text.startswith("callbacks")]
    with pytest.raises(ConfigError, match=said):
        run([*given, *overrides])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["callbacks=[default,samples]"], "SampleGrid is for a FlowTask, the task is a Classif"),
        (["task=flow"], "SAGANClassifier makes no images"),
    ],
)
def test_what_is_for_other_tasks_is_refused(run, overrides, said):
    with pytest.raises(ConfigError, match=said):
        run(["model=sagan", "data=digits", *overrides])

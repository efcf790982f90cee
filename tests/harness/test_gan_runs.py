"""Runs of the GAN task: judged, pictured, continued exactly, refused by name."""

import json
import os
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from killing import differences, log, outcome
from PIL import Image
from runs import train

import cvattn
from cvattn.data import DigitsData
from cvattn.harness import ConfigError
from cvattn.harness.reporting.csv_log import read_metrics
from cvattn.inference import GANWay, open_generator
from cvattn.inference.grids import image_grid
from cvattn.tasks import GANTask

GAN = [
    *("data=digits", "model=sagan_gan", "model.width=4", "model.noise_dim=3", "recipe.epochs=2"),
    *("trainer.precision=32-true", "trainer.accelerator=cpu", "trainer.limit_train_batches=3"),
    *("callbacks.made.rows=1", "recipe.batch_size=11"),
]


class Stop(Exception):
    """In place of a kill, in this process."""


def saved(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def test_a_run_is_judged_by_its_distance_and_leaves_pictures(run, tmp_path, capsys):
    score = run(GAN)
    folder = tmp_path / "run"
    summary = json.loads((folder / "summary.json").read_text())
    rows = read_metrics(folder / "metrics.csv")
    best = min(row["val/swd"] for row in rows.values())
    assert summary["criterion"] == {"metric": "val/swd", "mode": "min", "best": pytest.approx(best)}
    assert score == pytest.approx(-best)
    assert summary["test"].keys() == {"swd", "spread"}
    assert (summary["steps"], summary["images"]) == (6, 66)
    assert summary["gamma"].keys() == {"generator.attention2", "discriminator.attention1"}
    assert rows[1].keys() >= {"train/loss", "train/generator_loss", "val/swd", "val/spread", "lr"}
    grids = ["samples/epoch_001.png", "samples/epoch_002.png"]
    for name in ["samples.png", "curves.png", "attention.png", *grids]:
        assert (folder / name).read_bytes().startswith(b"\x89PNG"), name
    generator = open_generator(folder / "checkpoints" / "last.ckpt")
    assert generator.way is GANWay
    # The network knows how the images are normalised, and the picture is of the averaged weights.
    assert generator.network.mean.flatten().tolist() == pytest.approx(generator.mean)
    pixels, _ = generator.sample(10)
    with Image.open(folder / "samples" / "epoch_002.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(image_grid(pixels, 10)))
    printed = capsys.readouterr().out
    assert f"val {best:.4f}" in printed
    assert "python -m cvattn sample" in printed
    assert "validation SWD of the last 2 evaluations: mean " in printed


@pytest.mark.slow
def test_averaged_weights_keep_the_unit_vectors_of_spectral_norms(run, tmp_path):
    run([*GAN, "callbacks.ema.decay=0.9"])
    network = cvattn.load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    vectors = [b for name, b in network.named_buffers() if name.endswith(("._u", "._v"))]
    assert len(vectors) > 20
    assert all(vector.norm() == pytest.approx(1.0, abs=1e-5) for vector in vectors)


@pytest.mark.slow
def test_an_average_is_saved_with_the_statistics_of_its_own(run, tmp_path):
    """Those that its generator gives by itself: measured once more they are the same."""
    run([*GAN, "callbacks.ema.decay=0.9"])
    checkpoint = saved(tmp_path / "run")
    data = DigitsData()
    data.setup("fit")
    optimizer = partial(torch.optim.Adam, lr=1e-3)
    task = GANTask(
        cvattn.load(tmp_path / "run" / "checkpoints" / "last.ckpt"),
        num_classes=10,
        optimizer=optimizer,
        discriminator_optimizer=optimizer,
    )
    task._trainer = SimpleNamespace(datamodule=data, world_size=1, global_rank=0)
    assert task.settle()
    measured = {k: v for k, v in task.state_dict().items() if "running" in k}
    assert len(measured) > 10
    for name, value in measured.items():
        torch.testing.assert_close(value, checkpoint["state_dict"][name], msg=name)
    trained = checkpoint["current_model_state"]
    assert any((measured[name] / trained[name] - 1).abs().max() > 0.05 for name in measured)


@pytest.mark.slow
def test_stopped_within_an_epoch_and_continued_is_never_stopped(run, tmp_path, monkeypatch):
    run(GAN)
    whole = saved(tmp_path / "run")
    picture = (tmp_path / "run" / "samples.png").read_bytes()
    (tmp_path / "run").rename(tmp_path / "whole")
    step, calls = GANTask.training_step, []

    def stopped(self, batch, batch_idx):
        calls.append(batch_idx)
        if len(calls) == 5:
            raise Stop
        return step(self, batch, batch_idx)

    monkeypatch.setattr(GANTask, "training_step", stopped)
    with pytest.raises(Stop):
        run([*GAN, "callbacks.last.every_minutes=0.0001"])
    run([f"ckpt_path={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"])
    assert calls[:5] == [0, 1, 2, 0, 1]
    continued = saved(tmp_path / "run")
    assert continued["global_step"] == whole["global_step"] == 6
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, continued["state_dict"][name]), name
    for before, after in zip(whole["optimizer_states"], continued["optimizer_states"], strict=True):
        for key, state in before["state"].items():
            assert all(torch.equal(state[name], after["state"][key][name]) for name in state)
    assert (tmp_path / "run" / "samples.png").read_bytes() == picture


@pytest.mark.slow
def test_killed_with_half_a_checkpoint_written(runs, tmp_path):
    """In a process of its own, twice; the same command goes on, and it ends as if it never was."""
    given = [*GAN, "callbacks.last.every_minutes=0"]
    assert runs.run([*given, "hydra.run.dir=whole"], tmp_path) == 0, log(tmp_path)
    again = [*given, "hydra.run.dir=killed", "resume=auto"]
    for count in (2, 3):
        assert runs.run(again, tmp_path, "half:last.ckpt", count=count) == -9, log(tmp_path)
    assert runs.run(again, tmp_path) == 0, log(tmp_path)
    found = [outcome(tmp_path / name) for name in ("whole", "killed")]
    assert differences(*found) == []


@pytest.mark.slow
def test_another_learning_rate_counts_from_where_a_run_goes_on(run, tmp_path):
    run([*GAN, "recipe.final=1.0", "recipe.epochs=1"])
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    changed = ["recipe.optimizer.lr=0.5", "recipe.discriminator_optimizer.lr=0.0"]
    run(["model=sagan_gan", f"ckpt_path={last}", "trainer.max_epochs=2", *changed])
    groups = [state["param_groups"] for state in saved(tmp_path / "run")["optimizer_states"]]
    assert [{group["lr"] for group in each} for each in groups] == [{0.5}, {0.0}]


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "precision"), [(0, "bf16-mixed"), (10, "64-true")])
def test_other_ways_of_training(run, tmp_path, classes, precision):
    more = ["recipe.epochs=1", "task.gradient_penalty=0.1", "recipe.augment=[color,cutout]"]
    given = ["model.attention=common", f"model.classes={classes}", "recipe.channels_last=true"]
    run([*GAN, *more, *given, f"trainer.precision={precision}"])
    assert cvattn.load(tmp_path / "run" / "checkpoints" / "last.ckpt").classes == classes


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.classes=7"], "model.classes=7, but digits has 10 classes"),
        (["model=sagan"], "SAGANClassifier is no pair of generator and discriminator"),
        (["trainer.gradient_clip_val=1.0"], "gradient_clip_val=1.0: GANTask has two optimisers"),
        (["trainer.accumulate_grad_batches=2"], "accumulate_grad_batches=2: GANTask has two"),
        (
            ["trainer=ddp", "trainer.strategy=ddp_find_unused_parameters_false"],
            "each step of GANTask is of a part of the network",
        ),
        (["recipe.augment=[colour]"], "augment: 'colour'; expected some of color"),
        (["recipe.discriminator_steps=0"], "discriminator_steps=0 must be at least 1"),
        (["+recipe.discriminator_optimizer.lrr=1"], "Adam has no such argument"),
        (["recipe.discriminator_optimizer._target_=os.system"], "os.system"),
        (["callbacks.made.truncation=0"], "truncation=0"),
        (["model.attention_at=9"], "attention_at=9"),
        (["callbacks=[default,samples]"], "SampleGrid is for a FlowTask, the task is a GANTask"),
    ],
)
def test_what_cannot_be_is_refused_before_training(run, overrides, said):
    given = [text for text in GAN if not text.startswith("callbacks")]
    if overrides == ["model=sagan"]:
        given = ["data=digits", "task=gan", "recipe=sagan_gan"]
    with pytest.raises(ConfigError, match=said):
        run([*given, *overrides])


@pytest.mark.slow
def test_two_processes_learn_together(tmp_path):
    """Each process draws its own noise and has its own batch moments, and the weights stay one."""
    given = [*GAN, "recipe.batch_size=12", "trainer=ddp", "trainer.devices=2"]
    output = train(
        *given, f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path, PYTHONPATH=os.getcwd()
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["images"]) == (6, 72), output
    network = open_generator(tmp_path / "run" / "checkpoints" / "last.ckpt").network
    assert all(parameter.isfinite().all() for parameter in network.parameters())

"""What is one line of configuration: averaging, early stopping, best-k, clipping, accumulation."""

import json

import pytest
import torch
from runs import TINY
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import cvattn
from cvattn.cost import count_macs
from cvattn.data import DigitsData


@pytest.fixture
def steps():
    """Of each optimiser step the norm of all gradients, and all weights after it."""
    norms: list[float] = []
    weights: list[list[torch.Tensor]] = []

    def params(optimizer):
        return [p for group in optimizer.param_groups for p in group["params"]]

    def after(optimizer, args, kwargs):
        norms.append(float(torch.stack([p.grad.norm() for p in params(optimizer)]).norm()))
        weights.append([p.detach().clone() for p in params(optimizer)])

    handle = register_optimizer_step_post_hook(after)
    yield norms, weights
    handle.remove()


def last(tmp_path):
    return tmp_path / "run" / "checkpoints" / "last.ckpt"


def trained(network) -> list[torch.Tensor]:
    """In the order of the optimiser's groups."""
    from cvattn.tasks import parameter_groups

    return [p.detach() for group in parameter_groups(network) for p in group["params"]]


def test_averaged_weights_are_saved_loaded_and_tested(run, steps, tmp_path):
    run([*TINY, "callbacks=[default,ema]", "callbacks.ema.decay=0.7", "trainer.max_epochs=2"])
    _, weights = steps
    assert len(weights) == 6
    average = weights[0]
    for later in weights[1:]:
        average = [0.7 * a + 0.3 * b for a, b in zip(average, later, strict=True)]
    network = cvattn.load(last(tmp_path))
    for found, want, raw in zip(trained(network), average, weights[-1], strict=True):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-6)
        assert not torch.equal(found, raw) or not found.any()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    with torch.no_grad():
        (images, labels), *_ = DigitsData().test_dataloader()
        loss = torch.nn.functional.cross_entropy(network(images), labels)
    assert summary["test"]["loss"] == pytest.approx(loss.item(), rel=1e-4)


@pytest.mark.slow
def test_continuing_an_averaged_run_equals_never_stopping(run, tmp_path):
    options = [*TINY, "callbacks=[default,ema]", "callbacks.ema.decay=0.7", "trainer.max_epochs=3"]
    run(options)
    whole = torch.load(last(tmp_path), weights_only=True)
    (tmp_path / "run").rename(tmp_path / "whole")

    count = 0

    def interrupt(*_):
        nonlocal count
        count += 1
        if count == 8:  # in the third epoch of three steps
            raise KeyboardInterrupt

    handle = register_optimizer_step_pre_hook(interrupt)
    with pytest.raises(SystemExit):
        run(options)
    handle.remove()
    assert torch.load(last(tmp_path), weights_only=True)["epoch"] == 1
    run([f"ckpt_path={last(tmp_path)}"])
    continued = torch.load(last(tmp_path), weights_only=True)
    for key in ("state_dict", "current_model_state"):
        for name, value in whole[key].items():
            assert torch.equal(continued[key][name], value), name


@pytest.mark.slow
def test_training_ends_when_validation_stops_rising(run, tmp_path):
    frozen = [f"recipe.optimizer.{lr}=0.0" for lr in ("lr", "head_lr", "vector_lr")]
    run(
        [
            *TINY,
            *frozen,
            "callbacks=[default,early_stopping]",
            "callbacks.early_stopping.patience=2",
            "callbacks.early_stopping.min_delta=0.9",
            "trainer.max_epochs=9",
        ]
    )
    assert torch.load(last(tmp_path), weights_only=True)["epoch"] == 2


@pytest.mark.slow
def test_the_best_epochs_are_kept_under_their_numbers(run, tmp_path):
    run(
        [*TINY, "callbacks=[default,best_k]", "callbacks.best.save_top_k=2", "trainer.max_epochs=4"]
    )
    kept = sorted(path.name for path in last(tmp_path).parent.iterdir())
    assert len(kept) == 3
    assert kept[2] == "last.ckpt"
    assert all(name.startswith("best-00") for name in kept[:2])


@pytest.mark.slow
def test_gradients_are_clipped_and_accumulated(run, steps):
    norms, _ = steps
    run([*TINY, "trainer.gradient_clip_val=0.01"])
    assert len(norms) == 3
    assert all(norm <= 0.0101 for norm in norms)
    norms.clear()
    run([*TINY, "trainer.accumulate_grad_batches=2"])
    assert len(norms) == 2  # of batches 1 and 2, and of batch 3
    assert all(norm > 0.02 for norm in norms)


@pytest.mark.parametrize(
    "option", [pytest.param("recipe.mixup=0.8", marks=pytest.mark.slow), "recipe.cutmix=1.0"]
)
def test_mixing_reaches_the_training(run, tmp_path, option):
    run([*TINY, option])
    mixed = torch.load(last(tmp_path), weights_only=True)["state_dict"]
    run(TINY)
    plain = torch.load(last(tmp_path), weights_only=True)["state_dict"]
    name = "network.head.weight"
    assert not torch.equal(mixed[name], plain[name])


def test_without_callbacks_and_loggers_only_the_result_is_written(run, tmp_path):
    run([*TINY, "callbacks=[]", "logger=[]"])
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert written == {"attention.png", "config.yaml", "summary.json"}


def test_smaller_images_at_first(run, tmp_path):
    """6 steps: 2 at 16 pixels, 2 at 24, 2 at 32; the cost counts them as they are."""
    phases = "recipe.resizing=[[0.5,0.333],[0.75,0.333]]"
    arguments = [*TINY[:-1], phases, "trainer.max_epochs=2", "recipe.batch_size=100"]
    run(arguments)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["images_by_size"] == {"16x16": 200, "24x24": 200, "32x32": 200}
    network = cvattn.load(last(tmp_path))
    macs = [count_macs(network, torch.zeros(1, 3, side, side)) for side in (16, 24, 32)]
    assert summary["pflop"] == pytest.approx(6 * 200 * sum(macs) / 1e15)
    assert summary["macs_per_image"] == macs[2]


@pytest.mark.slow
def test_smaller_images_of_a_vit_are_whole_patches(run, tmp_path):
    """0.6 of 32 pixels is 19.2, the nearest of whole patches 16: in 4 of 7 steps."""
    arguments = ["model=vit", "model.patch_size=16", "model.embed_dim=12", "model.num_layers=1"]
    arguments += ["recipe.resizing=[[0.6,0.5]]", "trainer.max_epochs=1", "recipe.batch_size=160"]
    run([TINY[0], *TINY[3:5], *arguments])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["images_by_size"] == {"16x16": 640, "32x32": 480}

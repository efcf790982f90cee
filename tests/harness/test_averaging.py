"""Which weights are judged, saved and tested, at every setting of every averaging option."""

import json
import math

import pytest
import torch
from runs import TINY
from torch.optim.optimizer import register_optimizer_step_post_hook

import cvattn
from cvattn.data import DigitsData
from cvattn.harness import ConfigError, fit
from cvattn.harness.config.resolve import resolve
from cvattn.tasks import parameter_groups

EMA = [*TINY[:-1], "callbacks=[default,ema]", "trainer.max_epochs=2"]
STEPS = 6  # of EMA


@pytest.fixture
def weights():
    """All weights after each optimiser step, in the order of the optimiser's groups."""
    seen: list[list[torch.Tensor]] = []

    def after(optimizer, args, kwargs):
        params = [p for group in optimizer.param_groups for p in group["params"]]
        seen.append([p.detach().clone() for p in params])

    handle = register_optimizer_step_post_hook(after)
    yield seen
    handle.remove()


def expected(weights, *, decay=0.99, every=1, start=0):
    """The definition: the trained weights, or the average that each ``every``-th step updates."""
    average = None
    for done, step in enumerate(weights, start=1):
        if done > start and (done - start) % every == 0:
            average = (
                step
                if average is None
                else [decay * a + (1 - decay) * w for a, w in zip(average, step, strict=True)]
            )
    return average


SETTINGS = [
    ({"decay": 0.0}, {"decay": 0.0}),
    ({"update_starting_at_step": STEPS}, {"start": STEPS}),
    ({"update_every_n_steps": 100000}, {"every": 100000}),
    ({"update_every_n_steps": 4, "use_buffers": "false"}, {"every": 4}),
    (
        {"update_every_n_steps": 2, "update_starting_at_step": 1, "decay": 0.5},
        {"every": 2, "start": 1, "decay": 0.5},
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("given", "meaning"), SETTINGS)
def test_the_weights_that_are_judged_saved_and_tested(run, weights, tmp_path, given, meaning):
    run([*EMA, *(f"callbacks.ema.{key}={value}" for key, value in given.items())])
    average = expected(weights, **meaning)
    wanted = weights[-1] if average is None else average
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["weights"] == ("trained" if average is None else "averaged")
    checkpoints = tmp_path / "run" / "checkpoints"
    network = cvattn.load(checkpoints / "last.ckpt")
    found = [p.detach() for group in parameter_groups(network) for p in group["params"]]
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f, w, rtol=1e-5, atol=1e-6)
    data = DigitsData()
    for name, loader in (("test", data.test_dataloader()), ("val", data.val_dataloader())):
        images, labels = map(torch.cat, zip(*loader, strict=True))
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(network(images), labels).item()
        assert summary[name]["loss"] == pytest.approx(loss, rel=1e-4), name
    # What is called the best epoch is what its file has.
    best = cvattn.load(checkpoints / "best.ckpt")
    images, labels = map(torch.cat, zip(*data.val_dataloader(), strict=True))
    with torch.no_grad():
        accuracy = (best(images).argmax(-1) == labels).float().mean().item()
    assert summary["criterion"]["best"] == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.slow
def test_what_is_said_of_an_average_that_never_began_or_is_short(run, capsys):
    run([*EMA, "callbacks.ema.update_starting_at_step=100000"])
    assert "no average was begun (callbacks.ema.update_starting_at_step=100000" in " ".join(
        capsys.readouterr().out.split()
    )
    run([*EMA, "callbacks.ema.decay=0.9"])
    assert "averaged over 6 updates, fewer than the 10 that" in capsys.readouterr().out


def test_gamma_is_that_of_the_validated_weights(run, tmp_path):
    """Also where the averaging stands before the callback that looks at them."""
    run([*EMA[:-2], "trainer.max_epochs=2", "callbacks=[ema,default]", "callbacks.ema.decay=0.5"])
    gamma = json.loads((tmp_path / "run" / "summary.json").read_text())["gamma"]
    network = cvattn.load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert gamma["attention.stage2"] == pytest.approx(network.attention.stage2.gamma.item())


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 4, 100])
def test_continuing_equals_never_stopping(run, composed, tmp_path, start):
    """Stopped before the average was begun, or after; the schedule is that of the longer run."""
    options = [*EMA, f"callbacks.ema.update_starting_at_step={start}", "callbacks.ema.decay=0.7"]
    options += ["trainer.max_epochs=3"]
    run(options)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    whole = torch.load(last, weights_only=True)
    (tmp_path / "run").rename(tmp_path / "whole")
    count = 0

    def interrupt(*_):
        nonlocal count
        count += 1
        if count == 5:  # in the second epoch of three steps
            raise KeyboardInterrupt

    handle = register_optimizer_step_post_hook(interrupt)
    with pytest.raises(SystemExit):
        run(options)
    handle.remove()
    fit(composed([f"ckpt_path={last}"]))
    continued = torch.load(last, weights_only=True)
    assert ("averaging_state" in continued) == ("averaging_state" in whole) == (start < 9)
    for key in {"state_dict", "current_model_state"} & set(whole):
        for name, value in whole[key].items():
            assert torch.equal(continued[key][name], value), name
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["weights"] == ("averaged" if start < 9 else "trained")


@pytest.mark.parametrize(
    "wrong",
    [
        ("callbacks.ema.decay=1.0", r"decay=1\.0 must be in \[0, 1\)"),
        ("callbacks.ema.decay=-0.1", r"decay=-0\.1 must be in"),
        ("callbacks.ema.update_every_n_steps=0", r"must be at least 1"),
        ("callbacks.ema.update_starting_at_step=-1", r"must be 0 or more"),
        ("+callbacks.ema.update_starting_at_epoch=1", r"no such argument"),
    ],
)
def test_settings_that_mean_nothing_are_refused(run, wrong):
    with pytest.raises(ConfigError, match=wrong[1]):
        run([*EMA, wrong[0]])


@pytest.mark.parametrize(
    "target", ["WeightAveraging", "EMAWeightAveraging", "StochasticWeightAveraging"]
)
def test_lightnings_own_averages_are_refused(composed, target):
    more = [f"+callbacks.other._target_=pytorch_lightning.callbacks.{target}"]
    more += ["+callbacks.other.swa_lrs=0.1"] if target.startswith("St") else []
    with pytest.raises(ConfigError, match=r"callbacks=\[default,ema\]"):
        resolve(composed([*TINY, *more]), more)


def test_an_average_keeps_its_bits_beside_a_network_of_fewer():
    """A validation puts the average in place and back; neither is rounded by that."""
    from types import SimpleNamespace

    from pytorch_lightning.trainer.states import TrainerFn

    from cvattn.harness import AveragedWeights

    module = torch.nn.Linear(7, 5).bfloat16()
    module.device = torch.device("cpu")
    average = AveragedWeights(0.9)
    trainer = SimpleNamespace(global_step=1, state=SimpleNamespace(fn=TrainerFn.FITTING))
    average._average_model = torch.optim.swa_utils.AveragedModel(
        torch.nn.Linear(7, 5), use_buffers=True
    )
    average.on_train_batch_end(trainer, module, None, None, 0)
    with torch.no_grad():
        average._average_model.module.weight.add_(math.pi * 1e-4)
    before = average._average_model.module.weight.clone(), module.weight.clone()
    average.on_validation_epoch_start(trainer, module)
    assert not torch.equal(module.weight, before[1])
    average.on_validation_epoch_end(trainer, module)
    assert torch.equal(average._average_model.module.weight, before[0])
    assert torch.equal(module.weight, before[1])

"""A network before and after ``replace_attention``: one output, one gradient each."""

import copy
import warnings

import torch
from oracles import assert_near, scalar

import cvattn


def replaced(network, **options):
    """A copy with ours in it; a warning fails the test."""
    ours = copy.deepcopy(network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cvattn.replace_attention(ours, **options) is ours
    return ours


def assert_same_network(theirs, ours, run, *inputs):
    """``run(network, *inputs)``: output and all gradients, in float64."""
    want, slopes, before = _outcome(theirs, run, inputs)
    got, found, after = _outcome(ours, run, inputs)
    assert_near(got, want, "output")
    for each, other in zip(found, slopes, strict=True):
        assert_near(each, other, "input's gradient")
    outside = before.keys() & after.keys()
    largest = max(gradient.abs().max() for gradient in before.values())
    for name in outside:
        assert (after[name] - before[name]).abs().max() <= 1e-10 * largest, name
    # Inside, the same numbers under other names and in other shapes.
    inside, inside_ours = (
        torch.cat([named[name].flatten() for name in named.keys() - outside]).sort().values
        for named in (before, after)
    )
    assert inside.shape == inside_ours.shape, "every weight is there, and no other"
    assert inside.abs().max() > 1e-6 * largest, "attention does nothing"
    assert (inside - inside_ours).abs().max() <= 1e-10 * inside.abs().max()


def _outcome(network, run, inputs):
    given = [x.clone().requires_grad_() for x in inputs]
    output = run(network, *given)
    own = dict(network.named_parameters())
    slopes = torch.autograd.grad(
        scalar(output), [*given, *own.values()], allow_unused=True, materialize_grads=True
    )
    return output, slopes[: len(given)], dict(zip(own, slopes[len(given) :], strict=True))

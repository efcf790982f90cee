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
    results = []
    for network in (theirs, ours):
        given = [x.clone().requires_grad_() for x in inputs]
        output = run(network, *given)
        own = dict(network.named_parameters())
        slopes = torch.autograd.grad(scalar(output), [*given, *own.values()], allow_unused=True)
        results.append(
            (output, slopes[: len(given)], dict(zip(own, slopes[len(given) :], strict=True)))
        )
    (want, slopes, wanted), (got, found_slopes, found) = results
    assert_near(got, want, "output")
    for each, other in zip(found_slopes, slopes, strict=True):
        assert_near(each, other, "input's gradient")
    outside = wanted.keys() & found.keys()
    largest = max(g.abs().max() for g in wanted.values())
    for name in outside:
        assert (found[name] - wanted[name]).abs().max() <= 1e-10 * largest, name
    # Inside, the same numbers under other names and in other shapes.
    inner = [
        torch.cat([grads[name].flatten() for name in grads.keys() - outside]).sort().values
        for grads in (wanted, found)
    ]
    assert inner[0].numel() > 0
    assert inner[0].shape == inner[1].shape, "every weight is there, and no other"
    assert (inner[0] - inner[1]).abs().max() <= 1e-10 * largest

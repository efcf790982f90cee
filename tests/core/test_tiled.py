"""The tiled route where each tile has a few query rows of one sample, as large maps have them."""

import itertools

import pytest
import torch
from oracles import assert_hides, assert_near, loop_attention, scalar

from cvattn.core import attention
from cvattn.core.attention import Route, routing, tiles

BATCH, HEADS, LENGTH, SIZE = 2, 3, 7, 5


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """Tiles of 3, 3 and 1 rows."""
    monkeypatch.setattr(routing, "choose_route", lambda call: Route("tiled", "forced", {}))
    monkeypatch.setattr(tiles, "TILE", 1)
    monkeypatch.setattr(tiles, "LEAST_ROWS", 3)


def make_qkv(width, value_width, size=SIZE):
    shapes = [(LENGTH, width), (size, width), (size, value_width)]
    return [torch.randn(BATCH, HEADS, *s, dtype=torch.float64).requires_grad_() for s in shapes]


def make_terms():
    """Masks and biases for each row and for all of them, with and without causality."""
    shapes = [(LENGTH, SIZE), (BATCH, HEADS, LENGTH, SIZE), (BATCH, 1, 1, SIZE)]
    masks = [None, *(assert_hides(torch.rand(shape) < 0.6) for shape in shapes)]
    biases = [None, *(torch.randn(s, dtype=torch.float64).requires_grad_() for s in shapes)]
    for mask, bias, causal in itertools.product(masks, biases, [False, True]):
        yield {"attn_mask": mask, "attn_bias": bias, "is_causal": causal}


def test_equals_the_loop_forward_and_gradients():
    inputs = make_qkv(3, 4)
    for terms in make_terms():
        bias = terms["attn_bias"]
        leaves = inputs if bias is None else [*inputs, bias]
        actual, expected = attention(*inputs, **terms), loop_attention(*inputs, **terms)[0]
        assert_near(actual, expected)
        found = torch.autograd.grad(scalar(actual), leaves)
        for got, want in zip(found, torch.autograd.grad(scalar(expected), leaves), strict=True):
            assert_near(got, want, "gradient")


def test_second_derivative_equals_the_loop():
    inputs = make_qkv(3, 4)

    def second(output, leaves):
        slopes = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(slope.square().sum() for slope in slopes), leaves)

    # Every third, which meets each mask, each bias and both kinds of causality.
    for terms in list(make_terms())[::3]:
        bias = terms["attn_bias"]
        leaves = inputs if bias is None else [*inputs, bias]
        wanted = second(loop_attention(*inputs, **terms)[0], leaves)
        for got, want in zip(second(attention(*inputs, **terms), leaves), wanted, strict=True):
            assert_near(got, want)


def test_dropout_is_the_same_in_both_passes():
    """The gradient is that of the drawn weights: with one seed it is a function like any other."""

    def drawn(*inputs):
        torch.manual_seed(1)
        return attention(*inputs, dropout_p=0.4)

    assert torch.autograd.gradcheck(drawn, make_qkv(2, 3), raise_exception=False)


def test_dropout_differs_between_rows_and_samples():
    """With equal scores and a unit matrix as value, the output shows what was kept."""
    query, key, _ = (x.detach() * 0 for x in make_qkv(2, 1, size=64))
    value = torch.eye(64, dtype=torch.float64).expand(BATCH, HEADS, -1, -1)
    weights = attention(query, key, value, dropout_p=0.4).flatten(0, 2)
    kept = weights > 0
    assert_near(weights, kept.double() / (0.6 * 64))
    assert abs(kept.double().mean() - 0.6) < 0.05
    assert len(kept.unique(dim=0)) == BATCH * HEADS * LENGTH

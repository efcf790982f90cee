"""slow_attention against torch, and its own promises: hidden things are never touched."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_hides, assert_near, scalar

from cvattn.core import attention, attention_weights
from cvattn.testing import slow_attention

BATCH, HEADS, LENGTH, SIZE, WIDTH, VALUE_WIDTH = 2, 3, 5, 7, 4, 11


def make_qkv(length=LENGTH, size=SIZE, **options):
    shapes = [(length, WIDTH), (size, WIDTH), (size, VALUE_WIDTH)]
    return [torch.randn(BATCH, HEADS, *s, dtype=torch.float64, **options) for s in shapes]


def make_mask(*shape):
    mask = torch.rand(*shape) < 0.6
    mask[..., 0], mask[..., 2] = True, False
    return assert_hides(mask)


@pytest.mark.parametrize(
    "shape",
    [(LENGTH, SIZE), (BATCH, HEADS, LENGTH, SIZE), (BATCH, 1, 1, SIZE), (1, HEADS, 1, SIZE)],
)
@pytest.mark.parametrize("scale", [None, 1.0, 0.3])
def test_equals_torch_with_a_mask_and_with_a_bias(shape, scale):
    query, key, value = qkv = make_qkv(requires_grad=True)
    bias = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    masks = [None, make_mask(*shape)]
    for mask, term in itertools.product(masks, (None, bias)):
        joined = mask if term is None else term
        if mask is not None and term is not None:
            joined = term.masked_fill(~mask, -math.inf)
        wanted = F.scaled_dot_product_attention(*qkv, attn_mask=joined, scale=scale)
        output, weights = slow_attention(*qkv, attn_mask=mask, attn_bias=term, scale=scale)
        assert_near(output, wanted)
        assert_near(weights @ value, wanted)
        inputs = [query, key, value] + ([] if term is None else [term])
        theirs = torch.autograd.grad(scalar(wanted), inputs)
        for got, want in zip(torch.autograd.grad(scalar(output), inputs), theirs, strict=True):
            assert_near(got, want)


@pytest.mark.parametrize(("length", "size"), [(5, 7), (7, 5), (5, 5)])
def test_causality_is_aligned_to_the_bottom_right(length, size):
    query, key, value = make_qkv(length, size)
    i, j = torch.meshgrid(torch.arange(length), torch.arange(size), indexing="ij")
    allowed = assert_hides(j <= i + (size - length))
    output, weights = slow_attention(query, key, value, is_causal=True)
    assert_near(output, F.scaled_dot_product_attention(query, key, value, attn_mask=allowed))
    assert torch.equal(weights > 0, allowed.expand_as(weights))
    mask = make_mask(length, size)
    both, _ = slow_attention(query, key, value, attn_mask=mask, is_causal=True)
    wanted = F.scaled_dot_product_attention(query, key, value, attn_mask=mask & allowed)
    assert_near(both, wanted)
    assert (both - output).abs().max() > 1e-3


def test_what_is_hidden_is_never_touched():
    """NaN under a mask, a causal limit or a bias of -inf changes nothing; elsewhere it is seen."""
    query, key, value = make_qkv()
    mask = make_mask(LENGTH, SIZE)
    bias = torch.zeros(LENGTH, SIZE).masked_fill(~mask, -math.inf)
    wanted, _ = slow_attention(query, key, value, attn_mask=mask)
    spoiled_key, spoiled_value = key.clone(), value.clone()
    spoiled_key[:, :, 2], spoiled_value[:, :, 2] = math.nan, math.inf
    for terms in ({"attn_mask": mask}, {"attn_bias": bias}):
        output, weights = slow_attention(query, spoiled_key, spoiled_value, **terms)
        assert torch.equal(output, wanted)
        assert torch.equal(weights[..., 2], torch.zeros_like(weights[..., 2]))
    for which in range(3):
        given = [query.clone(), key.clone(), value.clone()]
        given[which][1, 2, 0] = math.nan
        output, _ = slow_attention(*given, attn_mask=mask)
        rows = [0] if which == 0 else range(LENGTH)  # every query sees key 0
        assert output[1, 2, rows].isnan().all()
        output[1, 2, rows] = 0.0
        assert output.isfinite().all()


def test_a_row_without_keys_is_zero_with_finite_gradients():
    qkv = make_qkv(requires_grad=True)
    mask = make_mask(BATCH, 1, LENGTH, SIZE)
    mask[..., -1] = True  # beside the first key: of one alone the weight is 1, and its slope 0
    mask[1, :, 3] = False
    bias = torch.zeros(BATCH, 1, LENGTH, SIZE).masked_fill(~mask, -math.inf)
    for terms in ({"attn_mask": mask}, {"attn_bias": bias}):
        output, weights = slow_attention(*qkv, **terms)
        assert not output[1, :, 3].any()
        assert not weights[1, :, 3].any()
        assert output[0].all()
        gradients = torch.autograd.grad(scalar(output), qkv)
        assert all(each.isfinite().all() for each in gradients)
        assert not gradients[0][1, :, 3].any()
        assert gradients[0][0].all()


def test_large_scores_do_not_overflow():
    query, key, value = make_qkv()
    output, weights = slow_attention(query, key, value, scale=1e4)
    assert (query @ key.mT * 1e4).max() > 710, "e^709 is the largest float64: no test"
    assert_near(output, F.scaled_dot_product_attention(query, key, value, scale=1e4))
    assert_near(weights.sum(-1), torch.ones(BATCH, HEADS, LENGTH, dtype=torch.float64))


def test_computes_in_float64_whatever_comes():
    low = [x.to(torch.bfloat16).requires_grad_() for x in make_qkv()]
    output, weights = slow_attention(*low, attn_bias=torch.randn(LENGTH, SIZE).half())
    assert output.dtype == weights.dtype == torch.float64
    gradients = torch.autograd.grad(scalar(output), low)
    assert all(each.dtype == torch.bfloat16 and each.any() for each in gradients)


def test_derivatives_of_both_orders():
    qkv = [x[:1, :2, :3, :2].clone().requires_grad_() for x in make_qkv()]
    mask = torch.tensor([[True, False, True], [True, True, False], [False, False, False]])

    def outputs(*given):
        return slow_attention(*given, attn_mask=mask)

    assert torch.autograd.gradcheck(outputs, qkv)
    assert torch.autograd.gradgradcheck(lambda *given: outputs(*given)[0], qkv)


def test_the_library_agrees_on_rows_that_torch_has_no_answer_for():
    query, key, value = make_qkv(7, 5)  # causal with fewer keys: the first two rows see nothing
    terms = {"is_causal": True, "attn_bias": torch.randn(7, 5, dtype=torch.float64)}
    output, weights = slow_attention(query, key, value, **terms)
    assert not output[:, :, :2].any()
    assert_near(attention(query, key, value, **terms), output)
    assert_near(attention_weights(query, key, **terms), weights)


@pytest.mark.parametrize("sizes", [(0, 3, 5, 7), (2, 0, 5, 7), (2, 3, 0, 7), (2, 3, 5, 0)])
def test_nothing_in_nothing_out(sizes):
    batch, heads, length, size = sizes
    query, key = torch.randn(batch, heads, length, 4), torch.randn(batch, heads, size, 4)
    output, weights = slow_attention(query, key, torch.randn(batch, heads, size, 3))
    assert output.shape == (batch, heads, length, 3)
    assert weights.shape == (batch, heads, length, size)
    assert not output.any()


SHAPES = {
    "query of 3 dimensions": ({"query": (2, 5, 4)}, "expected 4 dimensions each"),
    "other heads": ({"key": (2, 2, 7, 4)}, "one number of heads"),
    "other widths": ({"query": (2, 3, 5, 3)}, "one E"),
    "a value too few": ({"value": (2, 3, 6, 11)}, "one S"),
    "mask (B, L, S)": ({"attn_mask": (2, 5, 7)}, r"expected \(L, S\) or \(B, heads, L, S\)"),
    "mask turned": ({"attn_mask": (7, 5)}, r"broadcastable to the scores \(2, 3, 5, 7\)"),
    "bias of other heads": ({"attn_bias": (1, 2, 5, 7)}, "attn_bias has shape"),
}


@pytest.mark.parametrize(("shapes", "message"), SHAPES.values(), ids=SHAPES.keys())
def test_refuses_shapes_that_do_not_fit(shapes, message):
    given = dict(zip(("query", "key", "value"), make_qkv(), strict=True))
    for name, shape in shapes.items():
        given[name] = torch.ones(shape, dtype=torch.bool if name == "attn_mask" else torch.float64)
    with pytest.raises(ValueError, match=message):
        slow_attention(**given)


def test_refuses_masks_and_biases_of_the_other_kind():
    given = make_qkv()
    with pytest.raises(TypeError, match="expected bool with True = may attend"):
        slow_attention(*given, attn_mask=torch.zeros(LENGTH, SIZE))
    with pytest.raises(TypeError, match="expected a float tensor"):
        slow_attention(*given, attn_bias=make_mask(LENGTH, SIZE))

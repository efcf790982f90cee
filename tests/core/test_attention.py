"""attention() on every route against a loop, over masks x bias x causality x sizes."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import (
    ROUNDING,
    assert_accurate,
    assert_hides,
    assert_near,
    loop_attention,
    outcome,
    scalar,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

from cvattn.core import attention, attention_weights, masks
from cvattn.core.attention import Route, plan, reference_attention, routing, tiles

BATCH, HEADS = 2, 3
SIZES = [(5, 7), (7, 5), (5, 5)]
# route -> (E, Ev) that take it
WIDTHS = [
    ("fused", 5, 5),
    ("direct", 3, 11),
    ("direct", 11, 3),
    ("tiled", 3, 11),
    ("tiled", 11, 3),
    ("tiled", 5, 5),
    ("padded", 3, 11),
    ("padded", 11, 3),
]
MASKS = ["none", "LS", "BhLS", "B11S", "1hL1", "row"]
BIASES = ["none", "LS", "BhLS", "B11S"]


def force(monkeypatch, route):
    """Any route is right for any call, so each is tried; tiles of few scores and odd rows."""
    monkeypatch.setattr(routing, "choose_route", lambda call: Route(route, "forced", {}))
    monkeypatch.setattr(tiles, "TILE", 80)
    monkeypatch.setattr(tiles, "LEAST_ROWS", 2)


def shape_of(kind, length, size):
    return {
        "LS": (length, size),
        "BhLS": (BATCH, HEADS, length, size),
        "B11S": (BATCH, 1, 1, size),
        "1hL1": (1, HEADS, length, 1),
        "row": (BATCH, 1, length, size),
    }[kind]


def make_mask(kind, length, size):
    """A mask that hides something; "row" leaves one query of one sample nothing to see."""
    if kind == "none":
        return None
    mask = torch.rand(shape_of(kind, length, size)) < 0.6
    mask[..., 0], mask[..., -1] = True, False
    mask[..., 1:2] = True  # of one key alone the weight is 1, and its slope 0
    if kind == "1hL1":
        mask = torch.rand(mask.shape) < 0.6
        mask[..., 1, :], mask[..., 2, :] = True, False
    if kind == "row":
        mask[1, :, 2] = False
    return assert_hides(mask)


def make_bias(kind, length, size, dtype=torch.float64):
    if kind == "none":
        return None
    return torch.randn(shape_of(kind, length, size), dtype=dtype, requires_grad=True)


def make_qkv(length, size, width, value_width, dtype=torch.float64):
    shapes = [(length, width), (size, width), (size, value_width)]
    return [torch.randn(BATCH, HEADS, *s, dtype=dtype, requires_grad=True) for s in shapes]


def grads(output, inputs):
    given = [x for x in inputs if x is not None]
    return torch.autograd.grad(scalar(output), given)


@pytest.mark.sweep(12)
@pytest.mark.parametrize(("length", "size"), SIZES)
@pytest.mark.parametrize(("route", "width", "value_width"), WIDTHS)
def test_equals_the_loop_forward_and_gradients(
    length, size, route, width, value_width, monkeypatch
):
    force(monkeypatch, route)
    query, key, value = make_qkv(length, size, width, value_width)
    combinations = list(itertools.product(MASKS, BIASES, [False, True]))
    # All on the fused route; every fifth on the others, a step that is coprime to the axes.
    for mask, bias, causal in combinations if route == "fused" else combinations[::5]:
        what = f"mask {mask}, bias {bias}, causal {causal}"
        attn_mask, attn_bias = make_mask(mask, length, size), make_bias(bias, length, size)
        terms = {"attn_mask": attn_mask, "attn_bias": attn_bias, "is_causal": causal}
        expected, weights = loop_attention(query, key, value, **terms)
        actual = attention(query, key, value, **terms)
        inputs = [query, key, value, attn_bias]
        wanted = grads(expected, inputs)
        assert_near(actual, expected, what)
        for got, want in zip(grads(actual, inputs), wanted, strict=True):
            assert_near(got, want, "gradient, " + what)
        assert_near(attention_weights(query, key, **terms), weights, "weights, " + what)
        reference = reference_attention(query, key, value, **terms)
        assert_near(reference, expected, "reference, " + what)
        for got, want in zip(grads(reference, inputs), wanted, strict=True):
            assert_near(got, want, "reference's gradient, " + what)


@pytest.mark.parametrize(("route", "width", "value_width"), WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(route, width, value_width, dtype, monkeypatch):
    force(monkeypatch, route)
    # More tokens than in the other tests: the kernels work in blocks.
    query, key, value = (x.detach() for x in make_qkv(67, 131, width, value_width))
    mask = assert_hides(torch.rand(BATCH, 1, 67, 131) < 0.6)
    low = [x.to(dtype) for x in (query, key, value)]
    found = outcome(attention, *low, attn_mask=mask, is_causal=True)
    assert all(each.dtype == dtype for each in found)
    allowed = masks.combine_masks(mask, masks.causal_mask(67, 131))
    sdpa = F.scaled_dot_product_attention
    assert_accurate(found, outcome, sdpa, *low, attn_mask=allowed)


@pytest.mark.parametrize(("route", "width", "value_width"), WIDTHS)
def test_autocast(route, width, value_width, monkeypatch):
    force(monkeypatch, route)
    query, key, value = make_qkv(5, 7, width, value_width, torch.float32)
    bias = make_bias("BhLS", 5, 7, torch.bfloat16).detach()
    mask = make_mask("BhLS", 5, 7)
    with torch.autocast("cpu", torch.bfloat16):
        actual = attention(query, key, value, attn_mask=mask, attn_bias=bias)
        # A projection under autocast gives bf16, a cache may still hold fp32.
        mixed = attention(query.bfloat16(), key, value, attn_mask=mask, attn_bias=bias)
    low = [x.detach().bfloat16() for x in (query, key, value)]
    added = bias.masked_fill(~mask, float("-inf"))
    for found in (actual, mixed):
        assert_accurate(found, F.scaled_dot_product_attention, *low, attn_mask=added)


def assert_rounding(actual, expected):
    """As assert_near; but here all may be 0, since a mask may hide all."""
    torch.testing.assert_close(actual, expected, rtol=ROUNDING, atol=ROUNDING)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_shape_any_mask(data):
    """Generated sizes (1 included), masks and scales; the fused route equals the reference."""
    draw = data.draw
    batch, heads, length, size = (draw(st.integers(1, 5)) for _ in range(4))
    width = draw(st.integers(1, 9))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    query, key, value = (
        torch.randn(batch, heads, n, width, dtype=torch.float64, requires_grad=True)
        for n in (length, size, size)
    )
    full = (batch, heads, length, size)
    shape = [draw(st.sampled_from((1, n))) for n in full][draw(st.sampled_from((0, 2))) :]
    mask = torch.rand(shape) < draw(st.floats(0, 1))
    bias = torch.randn(shape, dtype=torch.float64) if draw(st.booleans()) else None
    terms = {
        "attn_mask": mask if draw(st.booleans()) else None,
        "attn_bias": bias,
        "is_causal": draw(st.booleans()),
        "scale": draw(st.sampled_from((None, 1.0, 0.3))),
    }
    actual = attention(query, key, value, **terms)
    expected = reference_attention(query, key, value, **terms)
    assert_rounding(actual, expected)
    inputs = [query, key, value]
    for got, want in zip(grads(actual, inputs), grads(expected, inputs), strict=True):
        assert_rounding(got, want)


@pytest.mark.parametrize("bound", [0, plan.SCORES_BOUND])
@pytest.mark.parametrize(("width", "value_width"), [(5, 5), (3, 11), (11, 3)])
def test_layout_in_memory_does_not_matter(width, value_width, bound, monkeypatch):
    """Transposed heads, a transposed feature map, channels last, expanded keys, strided slices."""
    monkeypatch.setattr(plan, "SCORES_BOUND", bound)
    query, key, value = (x.detach() for x in make_qkv(5, 7, width, value_width))
    expected = attention(query, key, value)
    layouts = {
        "heads after tokens": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        "features before tokens": lambda x: x.mT.contiguous().mT,
        "every second element": lambda x: x.repeat_interleave(2, -1)[..., ::2],
        "batch last": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    }
    for name, turn in layouts.items():
        turned = [turn(x) for x in (query, key, value)]
        assert not all(x.is_contiguous() for x in turned)
        assert_near(attention(*turned), expected, name)
    shared = [x[:, :1].expand(-1, HEADS, -1, -1) for x in (key, value)]
    assert_near(attention(query, *shared), loop_attention(query, *shared)[0], "expanded")


@pytest.mark.parametrize(("route", "width", "value_width"), WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_trap_01_nothing_to_attend_to_is_zero(route, width, value_width, dtype, monkeypatch):
    """One sample fully hidden and one row of another: output 0, weights 0, gradients finite."""
    force(monkeypatch, route)
    query, key, value = make_qkv(5, 7, width, value_width, dtype)
    mask = torch.ones(BATCH, 1, 5, 7, dtype=torch.bool)
    mask[0] = False
    mask[1, :, 3] = False
    for bias in (None, make_bias("BhLS", 5, 7, dtype)):
        output = attention(query, key, value, attn_mask=mask, attn_bias=bias)
        weights = attention_weights(query, key, attn_mask=mask, attn_bias=bias)
        for result in (output, weights):
            assert torch.isfinite(result).all()
            assert (result[0] == 0).all()
            assert (result[1, :, 3] == 0).all()
            assert (result[1, :, 2] != 0).any()
        found = grads(output, [query, key, value, bias])
        assert all(torch.isfinite(g).all() for g in found)
        assert (found[0][0] == 0).all()
        assert (found[2][0] == 0).all()
        assert (found[0][1] != 0).any()
    # The same row said with -inf in the bias.
    infinite = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, float("-inf"))
    again = attention(query, key, value, attn_bias=infinite)
    low = [x.detach() for x in (query, key, value)]
    assert_accurate(again, reference_attention, *low, attn_mask=mask)
    assert (again[0] == 0).all()
    assert all(torch.isfinite(g).all() for g in grads(again, [query, key, value]))


@pytest.mark.parametrize("widths", [(5, 5), (3, 11)])
def test_no_keys_and_no_queries(widths):
    """Empty sequences are sequences: no keys give 0, no queries give nothing."""
    query, key, value = make_qkv(5, 0, *widths)
    output = attention(query, key, value)
    assert output.shape == (BATCH, HEADS, 5, widths[1])
    assert (output == 0).all()
    query, key, value = make_qkv(0, 7, *widths)
    assert attention(query, key, value).shape == (BATCH, HEADS, 0, widths[1])


@pytest.mark.parametrize("bound", [0, plan.SCORES_BOUND])
@pytest.mark.parametrize("widths", [(8, 8), (3, 11)])
def test_trap_02_mask_bool_and_causal_together(widths, bound, monkeypatch):
    """A bool mask is a condition, never +1.0, and causality does not make it vanish."""
    monkeypatch.setattr(plan, "SCORES_BOUND", bound)
    query, key, value = make_qkv(5, 7, *widths)
    mask = make_mask("BhLS", 5, 7)
    both = attention(query, key, value, attn_mask=mask, is_causal=True)
    assert_near(both, loop_attention(query, key, value, attn_mask=mask, is_causal=True)[0])
    assert (both - attention(query, key, value, is_causal=True)).abs().max() > 0.01
    assert (both - attention(query, key, value, attn_mask=mask)).abs().max() > 0.01
    added = attention(query, key, value, attn_bias=mask.double(), is_causal=True)
    assert (both - added).abs().max() > 0.01


def test_trap_05_second_derivative_through_the_math_route():
    query, key, value = make_qkv(5, 7, 3, 3)
    mask = make_mask("BhLS", 5, 7)
    with sdpa_kernel(SDPBackend.MATH):
        output = attention(query, key, value, attn_mask=mask)
        (slope,) = torch.autograd.grad(output.square().sum(), query, create_graph=True)
        found = torch.autograd.grad(slope.square().sum(), [query, key, value])
    expected = loop_attention(query, key, value, attn_mask=mask)[0]
    (slope,) = torch.autograd.grad(expected.square().sum(), query, create_graph=True)
    wanted = torch.autograd.grad(slope.square().sum(), [query, key, value])
    for got, want in zip(found, wanted, strict=True):
        assert_near(got, want)


@pytest.mark.parametrize("bound", [0, plan.SCORES_BOUND])
@pytest.mark.parametrize("widths", [(5, 5), (3, 11)])
def test_trap_07_scale_is_what_was_asked_for(widths, bound, monkeypatch):
    """SAGAN's 1.0 is used as 1.0, and the default is 1/sqrt of the query's width, padded or not."""
    monkeypatch.setattr(plan, "SCORES_BOUND", bound)
    query, key, value = make_qkv(5, 7, *widths)
    sagan = attention(query, key, value, scale=1.0)
    assert_near(sagan, loop_attention(query, key, value, scale=1.0)[0])
    default = attention(query, key, value)
    assert_near(default, loop_attention(query, key, value, scale=widths[0] ** -0.5)[0])
    assert (sagan - default).abs().max() > 0.05
    assert_near(attention(query, key, value, scale=0.0)[:, :, 0], value.mean(2))


@pytest.mark.parametrize(("length", "size"), [(5, 7), (7, 5)])
def test_trap_08_causal_is_aligned_to_the_bottom_right(length, size):
    """The last query sees all keys; a changed key changes only the queries that may see it."""
    query, key, value = make_qkv(length, size, 5, 5)
    output = attention(query, key, value, is_causal=True)
    last = attention(query[:, :, -1:], key, value)
    assert_near(output[:, :, -1:], last)
    for j in range(size):
        moved = value.detach().clone()
        moved[:, :, j] += 1.0
        changed = attention(query, key, moved, is_causal=True) != output
        sees = [i for i in range(length) if j <= i + size - length]
        assert [i for i in range(length) if changed[:, :, i].any()] == sees


def test_cached_steps_equal_the_whole():
    """One query at a time with the keys so far, as in generation, equals all at once."""
    query, key, value = make_qkv(7, 7, 5, 5)
    whole = attention(query, key, value, is_causal=True)
    steps = [
        attention(query[:, :, i : i + 1], key[:, :, : i + 1], value[:, :, : i + 1], is_causal=True)
        for i in range(7)
    ]
    assert_near(torch.cat(steps, 2), whole)


@pytest.mark.parametrize("widths", [(5, 5), (3, 11)])
def test_dropout_in_expectation(widths):
    """The mean over many draws is the result without dropout; each draw differs."""
    query, key, value = (x.detach() for x in make_qkv(5, 7, *widths))
    mask = make_mask("row", 5, 7)
    exact = attention(query, key, value, attn_mask=mask)
    many = [x.repeat(3000, 1, 1, 1) for x in (query, key, value)]
    drawn = attention(*many, attn_mask=mask.repeat(3000, 1, 1, 1), dropout_p=0.3)
    drawn = drawn.unflatten(0, (3000, BATCH))
    assert (drawn[0] - drawn[1]).abs().max() > 0.1
    spread = drawn.std(0) / 3000**0.5
    assert ((drawn.mean(0) - exact).abs() <= 6 * spread + 1e-12).all()
    # Variance of inverted dropout: sum over keys of (w v)^2 p / (1 - p).
    weights = attention_weights(query, key, attn_mask=mask)
    variance = (weights.square() @ value.square()) * 0.3 / 0.7
    seen = variance > 1e-3
    assert (drawn.var(0)[seen] / variance[seen] - 1).abs().max() < 0.2


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("mask", MASKS)
def test_weights_of_chosen_rows(mask, bias, causal):
    query, key, _ = make_qkv(7, 5, 3, 3)
    terms = {
        "attn_mask": make_mask(mask, 7, 5),
        "attn_bias": make_bias(bias, 7, 5),
        "is_causal": causal,
    }
    full = attention_weights(query, key, **terms)
    for rows in ([4], [6, 0, 3], torch.tensor([5, 5, 2]), range(2, 5)):
        chosen = attention_weights(query, key, rows=rows, **terms)
        assert_near(chosen, full[:, :, torch.as_tensor(list(rows))])
    assert attention_weights(query, key, rows=[], **terms).shape == (BATCH, HEADS, 0, 5)


@pytest.mark.parametrize("size", [1, 7])
def test_rows_with_one_query_and_shared_terms(size):
    """A term of one row is shared by all queries, and is not indexed by the row numbers."""
    query, key, _ = make_qkv(5, size, 3, 3)
    mask = torch.ones(BATCH, 1, 1, size, dtype=torch.bool)
    mask[1] = False
    full = attention_weights(query, key, attn_mask=mask)
    assert_near(attention_weights(query, key, attn_mask=mask, rows=[4, 1]), full[:, :, [4, 1]])
    one = attention_weights(query[:, :, :1], key, attn_mask=mask, rows=[0, 0])
    assert_near(one, full[:, :, [0, 0]])


def test_bias_gradient_with_a_shared_bias():
    """A bias of shape (1, heads, 1, S) collects the gradient of all that share it."""
    query, key, value = make_qkv(5, 7, 3, 3)
    bias = torch.randn(1, HEADS, 1, 7, dtype=torch.float64, requires_grad=True)
    (got,) = grads(attention(query, key, value, attn_bias=bias), [bias])
    (want,) = grads(loop_attention(query, key, value, attn_bias=bias)[0], [bias])
    assert_near(got, want)


def test_sdpa_agrees_where_it_is_right():
    query, key, value = make_qkv(5, 7, 3, 3)
    mask = make_mask("BhLS", 5, 7)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert_near(attention(query, key, value, attn_mask=mask), expected)

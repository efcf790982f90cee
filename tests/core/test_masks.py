"""Masks: True = may attend. Builders against loops, adapters against the conventions of others."""

import math

import pytest
import torch
from oracles import assert_accurate, assert_hides, assert_near, loop_attention
from torch import nn

from cvattn.core import MultiHeadAttention, attention, masks
from cvattn.weights import from_torch


def test_length_mask_one_length_a_sample():
    mask = assert_hides(masks.length_mask(torch.tensor([3, 0, 7]), 7))
    assert mask.shape == (3, 1, 1, 7)
    assert mask[:, 0, 0].sum(-1).tolist() == [3, 0, 7]
    assert mask[0, 0, 0].tolist() == [True] * 3 + [False] * 4


def test_length_mask_one_length_a_query():
    lengths = torch.tensor([[1, 2, 5], [0, 5, 3]])
    mask = assert_hides(masks.length_mask(lengths, 5))
    assert mask.shape == (2, 1, 3, 5)
    for b in range(2):
        for i in range(3):
            assert mask[b, 0, i].tolist() == [j < lengths[b, i] for j in range(5)]


def test_padding_mask():
    ids = torch.tensor([[5, 9, 2, 0, 0], [7, 0, 3, 1, 1]])
    mask = assert_hides(masks.padding_mask(ids, 0))
    assert mask.shape == (2, 1, 1, 5)
    assert mask[:, 0, 0].tolist() == [[True, True, True, False, False], [True, False] + [True] * 3]


@pytest.mark.parametrize(("length", "size"), [(5, 7), (7, 5), (5, 5), (1, 7)])
def test_causal_mask(length, size):
    mask = masks.causal_mask(length, size)
    wanted = [[j <= i + size - length for j in range(size)] for i in range(length)]
    assert mask.tolist() == wanted
    assert mask[-1].all()
    if length == size:
        assert torch.equal(masks.causal_mask(length), mask)
    query, key = torch.randn(2, 1, length, 3), torch.randn(2, 1, size, 3)
    flagged = attention(query, key, key, is_causal=True)
    assert_accurate(flagged, attention, query, key, key, attn_mask=mask)


@pytest.mark.parametrize("window", [3, (1, 5), (5, 1), (3, 7)])
def test_local_mask_2d(window):
    height, width = 5, 7
    rows, columns = (window, window) if isinstance(window, int) else window
    mask = assert_hides(masks.local_mask_2d(height, width, window))
    for a in range(height * width):
        for b in range(height * width):
            dy, dx = a // width - b // width, a % width - b % width
            near = abs(dy) <= rows // 2 and abs(dx) <= columns // 2
            assert bool(mask[a, b]) == near


def test_combine_masks():
    lengths = masks.length_mask(torch.tensor([3, 5]), 5)
    both = masks.combine_masks(None, lengths, masks.causal_mask(4, 5), None)
    assert both.shape == (2, 1, 4, 5)
    assert both[0, 0].tolist() == [[j <= i + 1 and j < 3 for j in range(5)] for i in range(4)]
    assert masks.combine_masks(None, None) is None
    assert masks.combine_masks() is None


def test_from_zero_one():
    numbers = torch.tensor([[1, 0, 1], [0, 0, 1]])
    for dtype in (torch.float32, torch.int64, torch.uint8, torch.float16, torch.bool):
        assert torch.equal(masks.from_zero_one(numbers.to(dtype)), numbers.bool())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("hidden", [-1e4, -1e6, -1e9, -math.inf])
def test_trap_10_textbook_masks_hide_exactly(hidden, dtype):
    """-1e6 or -1e9 as "minus infinity" in any dtype: nothing leaks, and a length of 0 gives 0."""
    hide = masks.length_mask(torch.tensor([4, 0]), 7)
    additive = torch.zeros(hide.shape).masked_fill(~hide, hidden).to(dtype)
    mask, bias = masks.from_additive(additive)
    assert bias is None
    assert torch.equal(assert_hides(mask), hide)
    query, key, value = (torch.randn(2, 3, n, 5, dtype=dtype) for n in (3, 7, 7))
    output = attention(query, key, value, attn_mask=mask)
    assert torch.isfinite(output).all()
    assert (output[1] == 0).all()
    wild = value.masked_fill(~hide.mT, 1000.0)
    assert torch.equal(attention(query, key, wild, attn_mask=mask), output)


def test_from_additive_splits():
    additive = torch.tensor([[0.0, -2.5, -math.inf], [3.0, -1e9, -9999.0]])
    mask, bias = masks.from_additive(additive)
    assert mask.tolist() == [[True, True, False], [True, False, True]]
    assert bias.tolist() == [[0.0, -2.5, 0.0], [3.0, 0.0, -9999.0]]
    assert masks.from_additive(torch.zeros(3, 3)) == (None, None)
    assert masks.from_additive(torch.ones(3, 3))[0] is None
    learned = torch.zeros(3, 3, requires_grad=True)
    assert masks.from_additive(learned)[1].requires_grad
    assert masks.from_additive(torch.tensor([[math.nan, 0.0]]))[1].isnan().any()


BATCH, HEADS, LENGTH, SIZE = 3, 2, 5, 7


def torch_masks(kind):
    """attn_mask and key_padding_mask as nn.MultiheadAttention wants them (True = ignore)."""
    whole = torch.rand(BATCH * HEADS, LENGTH, SIZE) < 0.4
    whole[..., 0] = False
    padded = torch.arange(SIZE) >= torch.tensor([7, 4, 2])[:, None]
    numbers = torch.randn(whole.shape, dtype=torch.float64).masked_fill(whole, -math.inf)
    additive = torch.randn(padded.shape, dtype=torch.float64).masked_fill(padded, -math.inf)
    for mask in (whole, padded):
        assert_hides(mask)
    return {
        "bool 2-D": (whole[0], None),
        "bool 3-D": (whole, None),
        "float 2-D": (numbers[0], None),
        "float 3-D": (numbers, None),
        "padding": (None, padded),
        "float padding": (None, additive),
        "both bool": (whole, padded),
        "both float": (numbers[1], additive),
        "both float 3-D": (numbers, additive),
    }[kind]


KINDS = ["bool 2-D", "bool 3-D", "float 2-D", "float 3-D", "padding", "float padding"]
KINDS += ["both bool", "both float", "both float 3-D"]


@pytest.mark.parametrize("kind", KINDS)
def test_from_torch_masks_against_the_module(kind):
    theirs = nn.MultiheadAttention(6, HEADS, batch_first=True, dtype=torch.float64)
    query, key = torch.randn(BATCH, LENGTH, 6), torch.randn(BATCH, SIZE, 6)
    query, key = query.double(), key.double()
    attn_mask, padding = torch_masks(kind)
    expected, weights = theirs(
        query,
        key,
        key,
        attn_mask=attn_mask,
        key_padding_mask=padding,
        average_attn_weights=False,
    )
    allowed, bias = masks.from_torch_masks(attn_mask, padding, num_heads=HEADS)
    ours = from_torch(theirs)
    output, ours_weights = ours(query, key, attn_mask=allowed, attn_bias=bias, need_weights=True)
    assert_near(output, expected)
    assert_near(ours_weights, weights)
    plain = ours(query, key)
    assert (plain - expected).abs().max() > 1e-3, "the mask did nothing"


def test_trap_09_masks_of_samples_stay_apart():
    """torch's 3-D masks have the heads of a sample side by side (repeat_interleave, not repeat)."""
    per_sample = torch.rand(BATCH, LENGTH, SIZE) < 0.5
    per_sample[..., 0] = True
    assert_hides(per_sample)
    three_d = (~per_sample).repeat_interleave(HEADS, 0)
    allowed, _ = masks.from_torch_masks(three_d, num_heads=HEADS)
    assert torch.equal(allowed, per_sample[:, None].expand(-1, HEADS, -1, -1))
    # Ours needs no such trick: (B, 1, L, S). And each sample sees its own mask alone.
    query = torch.randn(BATCH, HEADS, LENGTH, 3, dtype=torch.float64)
    key = torch.randn(BATCH, HEADS, SIZE, 3, dtype=torch.float64)
    output = attention(query, key, key, attn_mask=per_sample[:, None])
    assert_near(output, loop_attention(query, key, key, attn_mask=allowed)[0])
    for b in range(BATCH):
        alone = attention(*(x[b : b + 1] for x in (query, key, key)), attn_mask=per_sample[b])
        assert_near(alone, output[b : b + 1])
    with pytest.raises(ValueError, match="3-D mask is ambiguous"):
        attention(query, key, key, attn_mask=three_d)


def test_polarity_is_ours_in_the_module():
    """A key that the mask shows can move the output; one that it hides cannot."""
    module = MultiHeadAttention(6, 2)
    x = torch.randn(2, 5, 6)
    mask = masks.length_mask(torch.tensor([3, 5]), 5)
    moved = x.clone()
    moved[0, 3:] += 1.0
    assert torch.equal(module(x, moved, attn_mask=mask), module(x, x, attn_mask=mask))
    moved[0, 2] += 1.0
    changed = (module(x, moved, attn_mask=mask) != module(x, x, attn_mask=mask)).any(-1)
    assert changed[0].all()
    assert not changed[1].any()


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: masks.length_mask(torch.tensor([1.0]), 5),
            ValueError,
            r"integers of shape \(B,\)",
        ),
        (lambda: masks.length_mask(torch.tensor([True]), 5), ValueError, "torch.bool"),
        (lambda: masks.length_mask(torch.tensor(3), 5), ValueError, r"got shape \(\)"),
        (lambda: masks.length_mask(torch.tensor([6, 2]), 5), ValueError, r"in 0\.\.5.*2\.\.6"),
        (lambda: masks.length_mask(torch.tensor([-1]), 5), ValueError, r"in 0\.\.5"),
        (lambda: masks.padding_mask(torch.zeros(2, 5), 0), ValueError, "must be integers"),
        (lambda: masks.padding_mask(torch.zeros(5).long(), 0), ValueError, r"\(B, S\)"),
        (lambda: masks.local_mask_2d(5, 7, 4), ValueError, "window=4 must be odd"),
        (lambda: masks.local_mask_2d(5, 7, (3, 0)), ValueError, r"window=\(3, 0\) must be odd"),
        (lambda: masks.combine_masks(torch.zeros(3, 3)), TypeError, "bool masks.*torch.float32"),
        (lambda: masks.from_zero_one(torch.tensor([0.0, 0.5])), ValueError, "zeros and ones"),
        (lambda: masks.from_zero_one(torch.tensor([0.0, -1e9])), ValueError, "from_additive"),
        (lambda: masks.from_additive(torch.ones(3, 3).bool()), TypeError, "float mask.*torch.bool"),
        (
            lambda: masks.from_torch_masks(torch.ones(5, 3, 3).bool(), num_heads=2),
            ValueError,
            "5 is not divisible by num_heads=2",
        ),
        (
            lambda: masks.from_torch_masks(torch.ones(3).bool(), num_heads=2),
            ValueError,
            r"attn_mask must be \(L, S\) or",
        ),
        (
            lambda: masks.from_torch_masks(None, torch.ones(3).bool(), num_heads=2),
            ValueError,
            r"key_padding_mask must be \(B, S\)",
        ),
        (
            lambda: masks.from_torch_masks(torch.ones(3, 3).int(), num_heads=2),
            TypeError,
            "torch.int32",
        ),
    ],
)
def test_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()

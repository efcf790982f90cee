"""MultiHeadAttention against nn.MultiheadAttention over its whole option grid, and by itself."""

import itertools
import math

import pytest
import torch
from oracles import (
    assert_accurate,
    assert_hides,
    assert_near,
    call,
    fill,
    loop_attention,
    outcome,
    scalar,
)
from torch import nn

from cvattn.core import MultiHeadAttention, masks
from cvattn.weights import from_torch

BATCH, LENGTH, SIZE, HEADS, WIDTH = 3, 5, 7, 2, 10
FLAGS = list(itertools.product([False, True], repeat=3))
PAIRS = list(itertools.product([False, True], repeat=2))


def torch_masks(kind, length, size):
    """attn_mask and key_padding_mask in torch's sense (True = ignore); no row is all hidden."""
    if kind == "none":
        return None, None
    whole = torch.rand(BATCH * HEADS, length, size) < 0.4
    whole[..., 0] = False
    padded = torch.arange(size) >= torch.tensor([size, 4, 2])[:, None]
    numbers = torch.randn(whole.shape, dtype=torch.float64).masked_fill(whole, -math.inf)
    additive = torch.zeros(padded.shape, dtype=torch.float64).masked_fill(padded, -math.inf)
    causal = torch.ones(length, size, dtype=torch.bool).triu(size - length + 1)
    for mask in (whole, padded, causal):
        assert_hides(mask)
    return {
        "bool 2-D": (whole[0], None),
        "bool 3-D": (whole, None),
        "float 2-D": (numbers[0], None),
        "float 3-D": (numbers, None),
        "padding": (None, padded),
        "bool and padding": (whole, padded),
        "float and padding": (numbers, additive),
        "causal": (causal, None),
    }[kind]


KINDS = ["none", "bool 2-D", "bool 3-D", "float 2-D", "float 3-D", "padding", "bool and padding"]
KINDS += ["float and padding", "causal"]


def torch_gradients(module, found):
    """Parameter gradients of nn.MultiheadAttention, under our names."""
    named = {}
    for part in ("weight", "bias"):
        if f"in_proj_{part}" in found:
            for name, grad in zip("qkv", found[f"in_proj_{part}"].chunk(3), strict=True):
                named[f"{name}_proj.{part}"] = grad
    for name in "qkv":
        if f"{name}_proj_weight" in found:
            named[f"{name}_proj.weight"] = found[f"{name}_proj_weight"]
    others = ("bias_k", "bias_v", "out_proj.weight", "out_proj.bias")
    return named | {name: found[name] for name in others if name in found}


def of_torch(module, *given, **terms):
    """Output, weights, and gradients of what was given (once: self-attention, or all three).

    With weights torch multiplies matrices, without it takes the kernel that ours takes, too, whose
    exponentials are less exact: each by its own error.
    """
    given = [x.detach().clone().requires_grad_() for x in given]
    inputs = given * 3 if len(given) == 1 else given
    weights = module(*inputs, **terms, average_attn_weights=False)[1]
    output = module(*inputs, **terms, need_weights=False)[0]
    own = dict(module.named_parameters())
    slopes = torch.autograd.grad(scalar(output), [*given, *own.values()])
    found = dict(zip(own, slopes[len(given) :], strict=True))
    return output, weights, *slopes[: len(given)], torch_gradients(module, found)


def of_torch_in_eval(module, *given, **terms):
    """Without gradients and weights it takes torch's fast path."""
    with torch.no_grad():
        inputs = given * 3 if len(given) == 1 else given
        return module(*inputs, **terms, need_weights=False)[0]


@pytest.mark.sweep(27)
@pytest.mark.parametrize(("bias", "bias_kv", "zero"), FLAGS)
@pytest.mark.parametrize(
    ("kdim", "vdim", "mode"),
    [
        (None, None, "self"),
        (None, None, "cross"),
        (13, None, "cross"),
        (None, 11, "cross"),
        (13, 11, "cross"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_torch(kdim, vdim, mode, bias, bias_kv, zero, dtype):
    theirs = nn.MultiheadAttention(
        WIDTH,
        HEADS,
        kdim=kdim,
        vdim=vdim,
        bias=bias,
        add_bias_kv=bias_kv,
        add_zero_attn=zero,
        batch_first=True,
        dtype=dtype,
    )
    fill(theirs)
    ours = from_torch(theirs)
    size = LENGTH if mode == "self" else SIZE
    shapes = [(LENGTH, WIDTH), (size, kdim or WIDTH), (size, vdim or WIDTH)]
    inputs = [torch.randn(BATCH, *s, dtype=dtype) for s in shapes]
    given = inputs[:1] if mode == "self" else inputs
    for kind in KINDS:
        attn_mask, padding = torch_masks(kind, LENGTH, size)
        attn_mask, padding = (
            m.to(dtype) if m is not None and m.is_floating_point() else m
            for m in (attn_mask, padding)
        )
        allowed, added = masks.from_torch_masks(attn_mask, padding, num_heads=HEADS)
        terms = {"attn_mask": allowed, "attn_bias": added}
        if kind == "causal":
            terms = {"is_causal": True}
        their_terms = {"attn_mask": attn_mask, "key_padding_mask": padding}
        for module in (theirs, ours):
            module.train()
        actual, *slopes = outcome(ours, *given, **terms)
        assert torch.equal(ours(*given, **terms), actual), "without weights it is the same output"
        again, weights = ours(*given, **terms, need_weights=True)
        assert torch.equal(again, actual)
        found = (actual, weights, *slopes)
        assert_accurate(found, of_torch, theirs, *given, what=kind, **their_terms)
        for module in (theirs, ours):
            module.eval()
        with torch.no_grad():
            fast = ours(*given, **terms)
        assert_accurate(fast, of_torch_in_eval, theirs, *given, what=kind, **their_terms)


def test_trap_13_one_big_projection_equals_one_per_head():
    """Written out: head h owns rows h*d to (h+1)*d of each projection, tokens stay tokens."""
    module = fill(MultiHeadAttention(WIDTH, HEADS).double())
    query, memory = torch.randn(BATCH, LENGTH, WIDTH), torch.randn(BATCH, SIZE, WIDTH)
    query, memory = query.double(), memory.double()
    mask = assert_hides(masks.length_mask(torch.tensor([7, 4, 2]), SIZE))
    width = WIDTH // HEADS
    total = module.out_proj.bias.expand(BATCH, LENGTH, -1)
    for h in range(HEADS):
        own = slice(h * width, (h + 1) * width)
        q, k, v = (
            x @ layer.weight[own].T + layer.bias[own]
            for x, layer in (
                (query, module.q_proj),
                (memory, module.k_proj),
                (memory, module.v_proj),
            )
        )
        head, _ = loop_attention(*(x[:, None] for x in (q, k, v)), attn_mask=mask)
        total = total + head[:, 0] @ module.out_proj.weight[:, own].T
    assert_near(module(query, memory, attn_mask=mask), total)


def test_key_and_value_default_to_what_stands_before():
    module = fill(MultiHeadAttention(WIDTH, HEADS))
    x, memory = torch.randn(BATCH, LENGTH, WIDTH), torch.randn(BATCH, SIZE, WIDTH)
    assert torch.equal(module(x), module(x, x, x))
    assert torch.equal(module(x, memory), module(x, memory, memory))
    assert not torch.allclose(module(x, memory), module(x, memory, memory.flip(1)))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("bias_kv", "zero"), PAIRS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_trap_01_a_fully_padded_sample(training, need_weights, bias_kv, zero):
    """The output bias and weights of 0 (or the appended keys alone), never NaN, on every path."""
    module = fill(MultiHeadAttention(WIDTH, HEADS, add_bias_kv=bias_kv, add_zero_attn=zero))
    module.train(training)
    x = torch.randn(BATCH, SIZE, WIDTH, requires_grad=True)
    mask = masks.length_mask(torch.tensor([7, 0, 3]), SIZE)
    result = module(x, attn_mask=mask, need_weights=need_weights)
    output = result[0] if need_weights else result
    assert torch.isfinite(output).all()
    if need_weights:
        weights = result[1]
        assert weights.shape == (BATCH, HEADS, SIZE, SIZE + bias_kv + zero)
        assert (weights[1, ..., :SIZE] == 0).all()
        total = 1.0 if bias_kv or zero else 0.0
        assert_near(weights[1].sum(-1) + 1, torch.full((HEADS, SIZE), total + 1))
    if not bias_kv:
        assert_near(output[1], module.out_proj.bias.expand(SIZE, -1))
    gradients = torch.autograd.grad(scalar(output), [x, *module.parameters()])
    assert all(torch.isfinite(g).all() for g in gradients)
    # A sample alone gives what it gives in the batch.
    with torch.no_grad():
        for b in range(BATCH):
            alone = module(x[b : b + 1], attn_mask=mask[b : b + 1])
            assert_near(alone, output[b : b + 1].detach())


@pytest.mark.usefixtures("float64")
def test_trap_01_inputs_that_are_hidden_may_hold_anything_finite():
    module = fill(MultiHeadAttention(WIDTH, HEADS))
    x = torch.randn(BATCH, SIZE, WIDTH)
    mask = masks.length_mask(torch.tensor([7, 2, 3]), SIZE)
    wild = x.clone()
    wild[1, 2:] = 1e4
    calm, stirred = module(x, attn_mask=mask), module(wild, attn_mask=mask)
    assert_near(stirred[1, :2], calm[1, :2])


@pytest.mark.usefixtures("float64")
def test_trap_08_dropout_is_for_training_alone():
    module = fill(MultiHeadAttention(WIDTH, HEADS, dropout=0.4))
    plain = MultiHeadAttention(WIDTH, HEADS)
    plain.load_state_dict(module.state_dict())
    x = torch.randn(BATCH, LENGTH, WIDTH)
    assert torch.equal(module.eval()(x), plain(x))
    module.train()
    assert not torch.equal(module(x), module(x))
    _, weights = module(x, need_weights=True)
    assert_near(weights, plain(x, need_weights=True)[1], "weights are those before dropout")
    mean = module(x.repeat(4000, 1, 1)).unflatten(0, (4000, BATCH))
    spread = mean.std(0) / 4000**0.5
    assert ((mean.mean(0) - plain(x)).abs() <= 6 * spread + 1e-6).all()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("bias_kv", "zero"), PAIRS)
def test_attention_weights_of_rows(bias_kv, zero, causal):
    module = fill(MultiHeadAttention(WIDTH, HEADS, add_bias_kv=bias_kv, add_zero_attn=zero))
    x, memory = torch.randn(BATCH, LENGTH, WIDTH), torch.randn(BATCH, SIZE, WIDTH)
    for mask in (
        None,
        masks.length_mask(torch.tensor([7, 4, 2]), SIZE),
        torch.rand(BATCH, 1, LENGTH, 1) < 0.6,  # one decision for all keys of a query
        torch.rand(LENGTH, SIZE) < 0.6,
    ):
        terms = {"attn_mask": mask, "attn_bias": torch.randn(LENGTH, SIZE), "is_causal": causal}
        _, full = module(x, memory, **terms, need_weights=True)
        output, rows = module(x, memory, **terms, need_weights=True, rows=[4, 1])
        assert torch.equal(output, module(x, memory, **terms))
        assert_near(rows, full[:, :, [4, 1]])
        hidden = torch.ones(BATCH, 1, LENGTH, SIZE, dtype=torch.bool)
        hidden = hidden if mask is None else hidden & mask
        hidden = hidden & masks.causal_mask(LENGTH, SIZE) if causal else hidden
        assert (full[..., :SIZE].masked_select(~hidden) == 0).all()
        assert (full[..., :SIZE].masked_select(hidden) > 0).all()


def test_autocast_and_bfloat16():
    """As near to float64 as torch's module is in bfloat16."""
    options = {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True}
    theirs = fill(nn.MultiheadAttention(WIDTH, HEADS, **options))
    module = from_torch(theirs)
    x, memory = torch.randn(BATCH, LENGTH, WIDTH), torch.randn(BATCH, SIZE, WIDTH)
    seen = masks.length_mask(torch.tensor([7, 0, 2]), SIZE)
    bias = torch.randn(LENGTH, SIZE).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        output, weights = module(x, memory, attn_mask=seen, attn_bias=bias, need_weights=True)
    assert output.dtype == torch.bfloat16
    assert torch.isfinite(weights).all()
    scalar(output.float()).backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())
    x, memory = x.bfloat16(), memory.bfloat16()
    low = module.bfloat16()(x, memory, attn_mask=seen, attn_bias=bias)
    padded = torch.zeros(BATCH, SIZE).masked_fill(~seen[:, 0, 0], -math.inf).bfloat16()
    terms = {"attn_mask": bias, "key_padding_mask": padded}
    for found in (output, low):
        assert_accurate(found, output_of_torch, theirs.bfloat16(), x, memory, memory, **terms)


def output_of_torch(*given, **terms):
    return of_torch(*given, **terms)[0]


@pytest.mark.slow
def test_compiled_without_a_graph_break():
    torch._dynamo.reset()
    module = fill(MultiHeadAttention(WIDTH, HEADS))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for batch, length in ((3, 5), (2, 7)):
        x = torch.randn(batch, length, WIDTH)
        mask = masks.length_mask(torch.arange(batch) + 1, length)
        assert_accurate(compiled(x, attn_mask=mask), call, module, x, attn_mask=mask)


@pytest.mark.slow
def test_compiled_by_inductor_with_gradients():
    torch._dynamo.reset()
    module = fill(MultiHeadAttention(WIDTH, HEADS))
    compiled = torch.compile(module, fullgraph=True)
    x = torch.randn(BATCH, LENGTH, WIDTH)
    mask = masks.length_mask(torch.tensor([5, 0, 3]), LENGTH)
    *found, own = outcome(compiled, x, attn_mask=mask)
    own = {name.removeprefix("_orig_mod."): slope for name, slope in own.items()}
    assert_accurate((*found, own), outcome, module, x, attn_mask=mask)


@pytest.mark.slow
def test_trap_17_exported_with_dynamic_batch_and_length():
    module = fill(MultiHeadAttention(WIDTH, HEADS, add_bias_kv=True)).eval()
    batch, length = (
        torch.export.Dim("batch", min=2, max=64),
        torch.export.Dim("length", min=2, max=99),
    )
    program = torch.export.export(
        module,
        (torch.randn(3, 5, WIDTH),),
        {"attn_mask": torch.ones(3, 1, 1, 5, dtype=torch.bool)},
        dynamic_shapes={"query": {0: batch, 1: length}, "attn_mask": {0: batch, 3: length}},
    ).module()
    for size, tokens in ((2, 5), (7, 11)):
        x = torch.randn(size, tokens, WIDTH)
        mask = masks.length_mask(torch.arange(size), tokens)
        assert_accurate(program(x, attn_mask=mask), call, module, x, attn_mask=mask)


def test_no_state_but_parameters():
    names = set(MultiHeadAttention(WIDTH, HEADS).state_dict())
    assert names == {f"{n}_proj.{p}" for n in ("q", "k", "v", "out") for p in ("weight", "bias")}
    assert "num_heads=2" in repr(MultiHeadAttention(WIDTH, HEADS))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((100, 12), "embed_dim=100 is not divisible by num_heads=12; nearest that are: 96, 108"),
        ((5, 7), "embed_dim=5 is not divisible by num_heads=7; nearest that are: 7$"),
        ((8, 0), "num_heads=0 must be at least 1"),
        ((0, 2), "embed_dim=0 and"),
        ((-8, 2), "embed_dim=-8"),
    ],
)
def test_refused_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(*arguments)


@pytest.mark.parametrize("dropout", [1.0, -0.1])
def test_refused_dropout(dropout):
    with pytest.raises(ValueError, match=f"dropout={dropout} is not a probability"):
        MultiHeadAttention(8, 2, dropout=dropout)


@pytest.mark.parametrize("extra", [{}, {"add_bias_kv": True}])
@pytest.mark.parametrize(
    ("shapes", "terms", "kind", "message"),
    [
        ([(5, 10)], {}, ValueError, r"query has shape \(5, 10\); expected \(batch, tokens, 10\)"),
        ([(3, 5, 9)], {}, ValueError, r"query has shape \(3, 5, 9\)"),
        ([(3, 5, 10), (3, 7, 10)], {}, ValueError, r"key has shape .*tokens, 13\)"),
        ([(3, 5, 10), (3, 7, 13), (3, 7, 13)], {}, ValueError, r"value has .*tokens, 11\)"),
        ([(3, 5, 10), (2, 7, 13), (2, 7, 11)], {}, ValueError, r"key has \(batch, heads\)"),
        ([(3, 5, 10), (3, 7, 13), (3, 6, 11)], {}, ValueError, "each key needs a value"),
        (None, {"attn_mask": torch.zeros(5, 7)}, TypeError, "attn_mask is torch.float32"),
        (None, {"attn_mask": torch.ones(3, 5, 7).bool()}, ValueError, "3-D mask is ambiguous"),
        (None, {"attn_mask": torch.ones(3, 7).bool()}, ValueError, "masks.length_mask"),
        (None, {"attn_mask": torch.ones(5, 6).bool()}, ValueError, r"attn_mask has shape \(5, 6\)"),
        (None, {"attn_bias": torch.ones(5, 7).bool()}, TypeError, "attn_bias is torch.bool"),
        (None, {"attn_bias": torch.ones(4, 7)}, ValueError, r"attn_bias has shape \(4, 7\)"),
    ],
)
@pytest.mark.parametrize("causal", [False, True])
def test_refused_at_the_call(shapes, terms, kind, message, extra, causal):
    """The message is about what the caller gave, with appended keys too."""
    module = MultiHeadAttention(WIDTH, HEADS, kdim=13, vdim=11, **extra)
    inputs = [torch.randn(s) for s in shapes or [(3, 5, 10), (3, 7, 13), (3, 7, 11)]]
    with pytest.raises(kind, match=message):
        module(*inputs, **terms, is_causal=causal)

"""Compilers and tracers take attention and its masks whole; a cache notices another memory."""

import contextlib

import pytest
import torch
from oracles import assert_near
from torch import nn

from cvattn.core import Decoder, MultiHeadAttention, masks
from cvattn.core.constants import constant_in_programs


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def test_a_constant_is_marked_as_torch_marks_it():
    """Which loads torch's compiler to do so."""

    def ours():
        return 3

    def theirs():
        return 3

    assert vars(constant_in_programs(ours)) == vars(torch.compiler.assume_constant_result(theirs))


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "autocast"])
def test_half_precision_compiles_without_a_graph_break(kind, training):
    """The processor is asked for its instructions in a way that compilers accept."""
    module = MultiHeadAttention(12, 3).train(training)
    dtype, context = torch.float32, contextlib.nullcontext()
    if kind == "autocast":
        context = torch.autocast("cpu", torch.bfloat16)
    else:
        dtype = getattr(torch, kind)
    module, x = module.to(dtype), torch.randn(2, 7, 12, dtype=dtype, requires_grad=True)
    mask = masks.length_mask(torch.tensor([5, 3]), 7)
    with context:
        output = compiled(module)(x, attn_mask=mask, is_causal=True)
        assert torch.equal(output, module(x, attn_mask=mask, is_causal=True))
    assert torch.autograd.grad(output.float().sum(), x)[0].isfinite().all()


@pytest.mark.parametrize(
    ("build", "given"),
    [
        (lambda x: masks.length_mask(x, 5), torch.tensor([2, 0, 5])),
        (lambda x: masks.from_zero_one(x), torch.tensor([[1, 0, 1]])),
        (lambda x: masks.from_additive(x)[0], torch.tensor([[0.0, -1e9, 1.5]])),
        (lambda x: masks.from_additive(x)[1], torch.tensor([[0.0, -1e9, 1.5]])),
        (lambda x: masks.from_torch_masks(x, num_heads=2)[0], torch.tensor([[0.0, -1e9, 1.5]])),
        (lambda x: masks.padding_mask(x, 0), torch.tensor([[3, 0]])),
    ],
)
def test_masks_are_built_in_a_compiled_function(build, given):
    assert torch.equal(compiled(build)(given), build(given))


def test_a_compiled_function_refuses_lengths_out_of_range():
    """When it runs: nothing is silently taken for all of the keys."""
    function = compiled(lambda lengths: masks.length_mask(lengths, 5))
    function(torch.tensor([2, 5]))
    with pytest.raises(RuntimeError, match=r"lengths must lie in 0\.\.5"):
        function(torch.tensor([2, 6]))


@pytest.mark.parametrize("rows", [[0, 4], torch.tensor([0, 4])], ids=["list", "tensor"])
def test_rows_are_chosen_in_a_compiled_function(rows):
    module, x = MultiHeadAttention(12, 3).double(), torch.randn(2, 7, 12, dtype=torch.float64)
    weights = compiled(module)(x, need_weights=True, rows=rows)[1]
    assert_near(weights, module(x, need_weights=True)[1][:, :, rows])


class Attend(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.tokens = MultiHeadAttention(12, 3, **options)

    def forward(self, x, mask):
        return self.tokens(x, attn_mask=mask, is_causal=True)


@pytest.mark.parametrize(
    "options", [{}, {"add_bias_kv": True, "add_zero_attn": True}, {"qk_norm": "rms"}]
)
def test_torch_fx_traces_it(options):
    """The graph holds for other sizes, since checks and decisions stay calls."""
    module = Attend(**options).double()
    traced = torch.fx.symbolic_trace(module)
    for batch, length in ((2, 7), (3, 5)):
        x = torch.randn(batch, length, 12, dtype=torch.float64)
        mask = masks.length_mask(torch.arange(batch) + 2, length)
        assert_near(traced(x, mask), module(x, mask))


@pytest.mark.parametrize("change", ["other values", "other length", "in place"])
def test_a_cache_notices_another_memory(change):
    decoder = Decoder(12, 3, 16, 2).eval()
    cache, memory, x = decoder.new_cache(), torch.randn(2, 5, 12), torch.randn(2, 1, 12)
    with torch.no_grad():
        decoder(x, memory, cache=cache)
        decoder(x, memory.clone(), cache=cache)
        if change == "in place":
            decoder(x, memory, cache=cache)
            memory.mul_(2)
        else:
            memory = torch.randn(2, 5 if change == "other values" else 4, 12)
        with pytest.raises(ValueError, match=r"another memory.*new_cache"):
            decoder(x, memory, cache=cache)

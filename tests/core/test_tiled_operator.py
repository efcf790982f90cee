"""The tiled operator as tools see it: torch's own check, counters of operations, reloading."""

import importlib

import pytest
import torch
from oracles import scalar
from torch.utils.flop_counter import FlopCounterMode

from cvattn.core import attention, use_route
from cvattn.core.attention import tiled, tiled_second, tiled_tangent


def make_qkv():
    return [torch.randn(2, 3, n, w, requires_grad=True) for n, w in ((5, 2), (7, 2), (7, 11))]


def call():
    with use_route("tiled"):
        output = attention(*make_qkv(), is_causal=True)
    output.sum().backward()
    return output


def test_second_derivatives_where_operations_are_watched():
    """Counters and profilers see each operator, and leave autograd out below themselves."""

    def penalty(*qkv):
        with use_route("tiled"):
            output = attention(*qkv)
        slopes = torch.autograd.grad(scalar(output), qkv, create_graph=True)
        return torch.autograd.grad(sum((slope**2).sum() for slope in slopes), qkv)

    qkv = make_qkv()
    with FlopCounterMode(display=False):
        watched = penalty(*qkv)
    for seen, alone in zip(watched, penalty(*qkv), strict=True):
        assert torch.equal(seen, alone)


def test_operations_are_counted():
    """FlopCounterMode saw none; plain products have the same forward pass, and 2 for 2.5."""
    with FlopCounterMode(display=False) as tiles:
        call()
    with FlopCounterMode(display=False) as products, use_route("direct"):
        attention(*make_qkv()).sum().backward()
    scores = 2 * 2 * 3 * 5 * 7
    assert products.get_total_flops() == scores * 3 * (2 + 11)
    assert tiles.get_total_flops() == scores * (3 * (2 + 11) + 2)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch says that kernels are replaced
@pytest.mark.skipif(
    torch.__version__.startswith("2.10."), reason="torch 2.10 crashes where a library is made anew"
)
def test_modules_can_be_loaded_anew():
    """As notebooks do with %autoreload; torch refuses to define an operator twice."""
    for module in (tiled, tiled_second, tiled_tangent):
        importlib.reload(module)
    assert call().isfinite().all()
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=False, backend="aot_eager")
    assert compiled().isfinite().all()


def test_torch_finds_no_fault_in_the_operators():
    query, key, value = make_qkv()
    given = (query, key, value, torch.rand(5, 7) < 0.7, torch.randn(5, 7).requires_grad_())
    more = (True, 0.7, 0.0, None)
    torch.library.opcheck(torch.ops.cvattn.tiled_attention.default, (*given, *more))
    plain = [x.detach() for x in given]
    output = torch.ops.cvattn.tiled_attention(*plain, *more)[0]
    changes = [torch.randn_like(x) for x in (query, key, value, given[4])]
    settings = (True, 0.7, 0.0)
    tools = ("test_schema", "test_faketensor")
    for name, arguments in {
        "tiled_attention_backward": (output, *plain, *more, True),
        "tiled_tangent": (*plain, *changes, *settings, None),
        "tiled_second": (output, *plain, *changes, *settings, True),
        "tiled_third": (output, *plain, *changes, *settings, True, output, *changes),
    }.items():
        operator = getattr(torch.ops.cvattn, name).default
        torch.library.opcheck(operator, arguments, test_utils=tools)

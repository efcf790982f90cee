"""NaN and infinity reach the queries that may attend to them, and no others, on every route."""

import math

import pytest
import torch
from oracles import assert_accurate, assert_near, scalar
from torch.utils._python_dispatch import TorchDispatchMode

from cvattn.core import attention, use_route
from cvattn.core.attention import Route, routing

LENGTH = 5


@pytest.mark.parametrize("said", ["mask", "bias", "causal"])
@pytest.mark.parametrize("size", [5, 7])
@pytest.mark.parametrize(
    ("route", "value_width"), [("fused", 3), ("padded", 11), ("direct", 11), ("tiled", 11)]
)
def test_not_finite_is_seen_by_those_who_may_alone(route, value_width, size, said, monkeypatch):
    monkeypatch.setattr(routing, "choose_route", lambda call: Route(route, "forced", {}))
    mask = torch.ones(LENGTH, size, dtype=torch.bool)
    mask[:, 2], mask[1, 2] = False, True
    bias = torch.zeros(LENGTH, size, dtype=torch.float64).masked_fill(~mask, -math.inf)
    # Only this row may attend to this key.
    terms, row, hidden = {
        "mask": ({"attn_mask": mask}, 1, 2),
        "bias": ({"attn_bias": bias}, 1, 2),
        "causal": ({"is_causal": True}, LENGTH - 1, size - 1),
    }[said]
    others = [i for i in range(LENGTH) if i != row]
    shapes = [(LENGTH, 3), (size, 3), (size, value_width)]
    inputs = [torch.randn(2, 3, *s, dtype=torch.float64).requires_grad_() for s in shapes]
    wanted = attention(*inputs, **terms)[:, :, others]
    wanted_grads = torch.autograd.grad(scalar(wanted), inputs)
    for which, token in enumerate((row, hidden, hidden)):
        for bad in (math.nan, math.inf):
            spoiled = [x.detach().clone() for x in inputs]
            spoiled[which][1, 2, token, 0] = bad
            spoiled = [x.requires_grad_() for x in spoiled]
            output = attention(*spoiled, **terms)
            assert output[1, 2, row].isnan().all()
            found = output[:, :, others]
            assert_near(found, wanted)
            grads = torch.autograd.grad(scalar(found), spoiled)
            for got, want in zip(grads, wanted_grads, strict=True):
                assert_near(got, want, "gradient")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 2, 7, 8, 15, 16, 17, 33])
def test_nothing_but_nan_is_nan(size, dtype):
    """torch's CPU kernel gives 0 for few keys: a model that has diverged would look alive."""
    query, key = (torch.randn(2, 3, n, 4, dtype=dtype) for n in (LENGTH, size))
    gone = torch.full_like(key, math.nan)
    assert attention(query, gone, key).isnan().all()
    assert attention(query, key, gone).isnan().all()
    assert attention(query * math.nan, key, key).isnan().all()


class Operators(TorchDispatchMode):
    """Names of the operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("said", ["mask", "bias", "causal"])
@pytest.mark.parametrize("route", ["fused", "direct"])
def test_guards_cost_nothing_where_everything_is_finite(route, said, bad):
    """Masked attention of finite numbers is what it would be without the care for others."""
    query, key, value = (torch.randn(2, 3, n, 3) for n in (LENGTH, 7, 7))
    mask = torch.ones(LENGTH, 7, dtype=torch.bool)
    mask[1, 2] = False
    bias = torch.randn(3, LENGTH, 7)[None].masked_fill(~mask, -math.inf)
    terms = {
        "mask": {"attn_mask": mask},
        "bias": {"attn_bias": bias},
        "causal": {"is_causal": True},
    }
    if bad:
        key[1, 2, 2, 0] = math.inf
    with use_route(route), Operators() as operators:
        attention(query, key, value, **terms[said])
    assert ("nan_to_num" in operators.names) == bad


@pytest.mark.parametrize("said", ["mask", "bias"])
def test_guards_cost_nothing_where_nothing_is_hidden(said):
    query, key, value = (torch.randn(2, 3, n, 3) for n in (LENGTH, 7, 7))
    key[1, 2, 2, 0] = math.inf
    shown = {"mask": torch.ones(LENGTH, 7, dtype=torch.bool), "bias": torch.randn(LENGTH, 7)}[said]
    with use_route("direct"), Operators() as operators:
        attention(query, key, value, **{f"attn_{said}": shown})
    assert "nan_to_num" not in operators.names


@pytest.mark.filterwarnings("ignore:.torch.jit.trace.:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_program_hides_though_its_example_did_not():
    tensors = [torch.randn(2, 3, n, 4) for n in (LENGTH, 7, 7)]
    mask = torch.ones(LENGTH, 7, dtype=torch.bool)

    def call(query, key, value, attn_mask):
        return attention(query, key, value, attn_mask=attn_mask)

    traced = torch.jit.trace(call, (*tensors, mask))
    hiding = mask.clone()
    hiding[:, 2] = False
    assert_accurate(traced(*tensors, hiding), call, *tensors, hiding)
    assert (traced(*tensors, hiding) - traced(*tensors, mask)).abs().max() > 1e-3


def test_vmap_over_biases():
    tensors = [torch.randn(2, 3, n, 4) for n in (LENGTH, 7, 7)]
    biases = torch.randn(4, LENGTH, 7)
    biases[1, 0, 3] = -math.inf
    found = torch.func.vmap(lambda bias: attention(*tensors, attn_bias=bias))(biases)
    for output, bias in zip(found, biases, strict=True):
        assert_accurate(output, attention, *tensors, attn_bias=bias)

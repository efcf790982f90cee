"""use_route(): a route by name, for those who know better than the plan."""

import threading

import pytest
import torch
from oracles import assert_hides, assert_near

from cvattn import SelfAttention2d
from cvattn.core import MultiHeadAttention, attention, record_routes, use_route
from cvattn.core.attention import reference_attention, routing

ROUTES = ["fused", "padded", "tiled", "direct"]


def make_qkv(width=3, value_width=3, **like):
    shapes = [(5, width), (7, width), (7, value_width)]
    return [torch.randn(2, 3, *shape, **like) for shape in shapes]


@pytest.mark.parametrize("route", ROUTES)
def test_the_route_is_taken_and_recorded_as_asked_for(route):
    tensors = make_qkv(dtype=torch.float64)
    mask = assert_hides(torch.rand(5, 7) < 0.7)
    with use_route(route), record_routes() as calls:
        output = attention(*tensors, attn_mask=mask)
    assert [chosen.name for _, chosen in calls] == [route]
    assert calls[0][1].reason == f'asked for by use_route("{route}")'
    assert_near(output, reference_attention(*tensors, attn_mask=mask))


def test_modules_take_it_and_the_innermost_counts():
    block, tokens = SelfAttention2d(16), MultiHeadAttention(8, 2)
    with record_routes() as calls:
        with use_route("direct"):
            block(torch.randn(1, 16, 7, 5))
            with use_route("tiled"):
                tokens(torch.randn(2, 17, 8))
            tokens(torch.randn(2, 17, 8))
        with pytest.raises(KeyError), use_route("tiled"):
            raise KeyError
        tokens(torch.randn(2, 17, 8))
    assert [chosen.name for _, chosen in calls] == ["direct", "tiled", "direct", "fused"]


@pytest.mark.parametrize(
    ("route", "widths", "more", "why"),
    [
        ("fused", (3, 4), {}, "unequal widths.*storing all scores"),
        ("fused", (3, 3), {"dropout_p": 0.1}, "dropout.*storing all scores"),
        ("padded", (3, 4), {"dropout_p": 0.1}, "dropout.*storing all scores"),
        ("fused", (3, 3), {"attn_bias": torch.zeros(5, 7).requires_grad_()}, "bias's gradient"),
    ],
)
def test_what_is_impossible_is_refused_with_the_reason(route, widths, more, why):
    with use_route(route), pytest.raises(ValueError, match=rf'use_route\("{route}"\).*{why}'):
        attention(*make_qkv(*widths), **more)


def test_an_unknown_route_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="'flash' is none of: fused, padded, tiled, direct"):
        use_route("flash").__enter__()


def test_other_threads_keep_their_own():
    """Neither the choice nor the record of one thread is another's."""
    tensors, other, gates = make_qkv(), [], [threading.Event(), threading.Event()]

    def work():
        with record_routes() as calls:
            gates[0].wait(10)
            attention(*tensors)
            gates[1].set()
        other.extend(chosen.name for _, chosen in calls)

    thread = threading.Thread(target=work)
    thread.start()
    with use_route("tiled"), record_routes() as calls:
        gates[0].set()
        assert gates[1].wait(10)
    thread.join()
    assert other == ["fused"]
    assert calls == []


@pytest.mark.slow
@pytest.mark.parametrize("followed", [True, False])
def test_a_compiled_function_is_compiled_for_it(followed, monkeypatch):
    """Also where the compiler follows no ContextVar, as before torch 2.14."""
    if followed and not routing._FOLLOWED:
        pytest.skip("this compiler follows no ContextVar")
    monkeypatch.setattr(routing, "_FOLLOWED", followed)
    torch._dynamo.reset()
    module = MultiHeadAttention(12, 3)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, taken = torch.randn(2, 7, 12), []
    for route in (None, "tiled", "direct", None):
        with record_routes() as calls:
            if route is None:
                compiled(x)
            else:
                with use_route(route):
                    compiled(x)
        taken += [chosen.name for _, chosen in calls]
    assert taken == ["fused", "tiled", "direct", "fused"]

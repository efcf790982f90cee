"""One result on every path through the modules: layouts, modes, weights, dropout, compiled."""

import itertools

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import ROUNDING, assert_accurate, assert_near, loop_attention, scalar

from cvattn.blocks import SelfAttention2d
from cvattn.core import MultiHeadAttention, attention
from cvattn.core.attention import Route, plan, record_routes, routing, tiles

ROUTES = ("fused", "padded", "tiled", "direct")


@pytest.fixture
def on_route(monkeypatch):
    """Sets the route of all calls; the tiles have few rows, the last one fewer."""
    monkeypatch.setattr(tiles, "TILE", 20)
    monkeypatch.setattr(tiles, "LEAST_ROWS", 2)

    def choose(route):
        monkeypatch.setattr(routing, "choose_route", lambda call: Route(route, "", {}))

    return choose


def randomise(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module.double()


def outcome(module, x, **terms):
    """Output and gradients of the input and all parameters, those of the key's bias left out."""
    x = x.detach().requires_grad_()
    output = module(x, **terms)
    wanted = [x, *(p for name, p in module.named_parameters() if "key.bias" not in name)]
    return [output, *torch.autograd.grad(scalar(output), wanted)]


def assert_all_near(found, expected, what):
    """With one position some gradients are 0 by nature, so the largest of all is the measure."""
    largest = max(want.abs().max().item() for want in expected)
    for got, want in zip(found, expected, strict=True):
        assert got.shape == want.shape
        assert (got - want).abs().max() <= ROUNDING * largest, what


def test_maps_give_one_result_in_all_layouts_modes_and_routes(on_route):
    """Pooled and full keys, several heads, NCHW, channels last and strided maps, train and eval."""

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(data=st.data())
    def run(data):
        draw = data.draw
        heads = draw(st.integers(1, 3))
        channels = heads * draw(st.integers(1, 4))
        torch.manual_seed(draw(st.integers(0, 2**30)))
        block = SelfAttention2d(
            channels,
            qk_channels=heads * draw(st.integers(1, 3)),
            num_heads=heads,
            kv_pool=draw(st.integers(1, 3)),
            value_channels=draw(st.none() | st.integers(1, 3).map(lambda width: heads * width)),
            norm_groups=draw(st.sampled_from([None, 1])),
            scale=draw(st.sampled_from([None, 1.0])),
            gamma_init=draw(st.sampled_from([None, 0.0])),
        )
        block = randomise(block)
        size = (draw(st.integers(1, 3)), channels, draw(st.integers(1, 6)), draw(st.integers(1, 6)))
        x = torch.randn(size, dtype=torch.float64)
        on_route("direct")
        expected = outcome(block, x)
        weights = block(x, need_weights=True)[1]
        assert_near(weights.sum(-1), torch.ones(weights.shape[:3], dtype=torch.float64))
        layouts = {
            "nchw": x,
            "channels last": x.to(memory_format=torch.channels_last),
            "strided": x.repeat_interleave(2, -1)[..., ::2],
        }
        for route, (layout, given_x) in itertools.product(ROUTES, layouts.items()):
            on_route(route)
            block.train(draw(st.booleans()))
            assert_all_near(outcome(block, given_x), expected, f"{route}, {layout}")
            assert_near(block(given_x, need_weights=True)[1], weights)

    run()


def test_tokens_give_one_result_with_weights_and_without(on_route):
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(data=st.data())
    def run(data):
        draw = data.draw
        heads, batch, length = (draw(st.integers(1, 3)) for _ in range(3))
        length *= 2
        torch.manual_seed(draw(st.integers(0, 2**30)))
        dropout = draw(st.sampled_from((0.0, 0.5)))
        module = randomise(MultiHeadAttention(heads * draw(st.integers(1, 4)), heads))
        module.dropout = dropout
        module.eval() if dropout else module.train(draw(st.booleans()))
        x = torch.randn(batch, length, module.embed_dim, dtype=torch.float64)
        mask = torch.rand(batch, 1, length, length) < 0.6
        mask[0, 0, 0, 0] = True  # something is seen
        terms = {"attn_mask": mask, "is_causal": draw(st.booleans())}
        q, k, v, _ = module._project(x, None, None, None, None, False, (None, None), None)
        heads_out, expected = loop_attention(q, k, v, **terms)
        wanted = module.out_proj(heads_out.transpose(1, 2).flatten(2))
        for route in ROUTES:
            on_route(route)
            output, weights = module(x, **terms, need_weights=True)
            assert torch.equal(output, module(x, **terms))
            assert_near(output, wanted, route)
            assert_near(weights, expected, route)

    run()


@pytest.mark.parametrize("route", ROUTES)
def test_dropout_in_expectation_forward_and_backward(route, on_route, monkeypatch):
    """The mean over many draws is the result without dropout, and so are the gradients."""
    draws = 4000
    shapes = [(1, 2, 5, 3), (1, 2, 7, 3), (1, 2, 7, 4)]
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    mask = torch.rand(5, 7) < 0.7
    mask[:, 0] = True
    on_route("direct")
    exact = attention(*inputs, attn_mask=mask)
    wanted = torch.autograd.grad(scalar(exact), inputs, retain_graph=True)
    on_route(route)
    monkeypatch.setattr(tiles, "TILE", 3500)
    many = [x.detach().expand(draws, -1, -1, -1).clone().requires_grad_() for x in inputs]
    output = attention(*many, attn_mask=mask, dropout_p=0.3)
    (slope,) = torch.autograd.grad(scalar(exact), exact)
    found = torch.autograd.grad(output, many, slope.expand_as(output))
    for samples, want in zip((output, *found), (exact, *wanted), strict=True):
        error = (samples.mean(0, keepdim=True) - want).abs()
        assert (error <= 6 * samples.std(0) / draws**0.5 + 1e-12).all()
        assert samples.std(0).max() > 0.01


def compiled_call(*tensors):
    query, key, value, mask, bias = tensors
    terms = {"attn_mask": mask, "attn_bias": bias}
    return attention(query, key, value, is_causal=mask is None, **terms)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bound", "widths", "said", "route"),
    [
        pytest.param(plan.SCORES_BOUND, (4, 4), "causal", "fused", marks=pytest.mark.slow),
        (plan.SCORES_BOUND, (4, 4), "mask and bias", "fused"),
        pytest.param(plan.SCORES_BOUND, (3, 5), "causal", "direct", marks=pytest.mark.slow),
        (0, (3, 5), "mask and bias", "tiled"),
    ],
)
def test_compiled_with_open_sizes(bound, widths, said, route, monkeypatch):
    """Five sizes through one compiled function, forward and gradients: 20 cases."""
    monkeypatch.setattr(plan, "SCORES_BOUND", bound)
    torch._dynamo.reset()
    compiled = torch.compile(compiled_call, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch, length, size in ((2, 5, 17), (3, 17, 17), (4, 31, 16), (2, 19, 19), (5, 16, 23)):
        shapes = [(length, widths[0]), (size, widths[0]), (size, widths[1])]
        inputs = [torch.randn(batch, 3, *s) for s in shapes]
        mask = bias = None
        if said != "causal":
            mask, bias = (
                torch.rand(batch, 1, length, size) < 0.6,
                torch.randn(3, length, size)[None],
            )
            mask[0, :, 1] = False
        with record_routes() as routes:
            compiled_call(*inputs, mask, bias)
        assert [chosen.name for _, chosen in routes] == [route]
        found = slopes(compiled, *inputs, mask, bias)
        assert_accurate(found, slopes, compiled_call, *inputs, mask, bias)


def slopes(function, query, key, value, mask, bias):
    return oracles.outcome(lambda *given: function(*given, mask, bias), query, key, value)

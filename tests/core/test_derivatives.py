"""Every mode of differentiation through attention(), on every route, against loops.

The inputs are a curve in 5 numbers, so that Jacobians and Hessians are small, and what torch's
autograd says of the loop is what all modes must say of each route.
"""

import functools

import pytest
import torch
from oracles import assert_hides, assert_near, loop_attention, scalar
from torch.autograd import forward_ad, functional
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

from cvattn import SelfAttention2d
from cvattn.core import MultiHeadAttention, attention, masks, record_routes, use_route
from cvattn.core.attention import tiles

pytestmark = [
    pytest.mark.usefixtures("float64"),
    # torch's own: forward mode loads decompositions that are scripts, linearize folds constants.
    pytest.mark.filterwarnings("ignore:.torch.jit.script.:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning"),
]

NUMBERS = 5
SHAPES = {"query": (2, 1, 3, 2), "key": (2, 1, 5, 2), "value": (2, 1, 5, 3), "bias": (1, 3, 5)}


@pytest.fixture(autouse=True)
def several_tiles(monkeypatch):
    """Tiles of 2 rows and 1."""
    monkeypatch.setattr(tiles, "TILE", 1)
    monkeypatch.setattr(tiles, "LEAST_ROWS", 2)


@functools.cache
def case(name):
    """(base, directions, terms) of a call: its inputs are base + directions . numbers."""
    generator = torch.Generator().manual_seed(7)
    mask = torch.rand(2, 1, 3, 5, generator=generator) < 0.6
    mask[0, :, 1] = False  # a query with nothing to attend to
    terms = {
        "plain": {},
        "mask": {"attn_mask": assert_hides(mask)},
        "causal": {"is_causal": True},
        "all": {"attn_mask": mask, "is_causal": True},
    }[name]
    drawn = {
        key: torch.randn(*shape, NUMBERS + 1, generator=generator, dtype=torch.float64)
        for key, shape in SHAPES.items()
        if key != "bias" or name == "all"
    }
    if name == "all":
        drawn["bias"][0, 2, 1, 0] = -torch.inf  # hidden by the bias; no direction moves it
        drawn["bias"][0, 2, 1, 1:] = 0.0
    return (
        {k: x[..., 0] for k, x in drawn.items()},
        {k: x[..., 1:] for k, x in drawn.items()},
        terms,
    )


def along(attend, name, numbers):
    base, directions, terms = case(name)
    moved = {key: base[key] + directions[key] @ numbers for key in base}
    bias = moved.get("bias")
    bias = None if bias is None else bias[None]
    return attend(moved["query"], moved["key"], moved["value"], attn_bias=bias, **terms)


def through_loops(name, numbers):
    return along(lambda *args, **terms: loop_attention(*args, **terms)[0], name, numbers)


def squares(f):
    """A scalar whose Hessian has a part of its own, not the attention's alone."""
    return lambda numbers: scalar(f(numbers).square())


@functools.cache
def expected(name):
    at, toward = points()
    loops = functools.partial(through_loops, name)
    jacobian = functional.jacobian(loops, at)
    second = functional.hessian(squares(loops), at)
    return {
        "jacobian": jacobian,
        "tangent": jacobian @ toward,
        "hessian": second,
        "product": second @ toward,
        "several": torch.stack([loops(at), loops(toward)]),
        "slopes": torch.stack([functional.jacobian(squares(loops), x) for x in (at, toward)]),
    }


def points():
    generator = torch.Generator().manual_seed(11)
    return torch.randn(2, NUMBERS, generator=generator, dtype=torch.float64).unbind()


def dual(f, at, toward):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(at, toward))).tangent


# mode -> (what it must equal, what it does)
MODES = {
    "jvp": ("tangent", lambda f, x, t: jvp(f, (x,), (t,))[1]),
    "dual numbers": ("tangent", dual),
    "linearize": ("tangent", lambda f, x, t: linearize(f, x)[1](t)),
    "jacfwd": ("jacobian", lambda f, x, t: jacfwd(f)(x)),
    "jacrev": ("jacobian", lambda f, x, t: jacrev(f)(x)),
    "functional.jacobian, forward": (
        "jacobian",
        lambda f, x, t: functional.jacobian(f, x, vectorize=True, strategy="forward-mode"),
    ),
    "functional.jacobian, vectorized": (
        "jacobian",
        lambda f, x, t: functional.jacobian(f, x, vectorize=True),
    ),
    "hessian": ("hessian", lambda f, x, t: hessian(squares(f))(x)),
    "forward over forward": ("hessian", lambda f, x, t: jacfwd(jacfwd(squares(f)))(x)),
    "reverse over reverse": ("hessian", lambda f, x, t: jacrev(jacrev(squares(f)))(x)),
    "reverse over forward": ("hessian", lambda f, x, t: jacrev(jacfwd(squares(f)))(x)),
    "functional.hessian": ("hessian", lambda f, x, t: functional.hessian(squares(f), x)),
    "functional.hessian, vectorized": (
        "hessian",
        lambda f, x, t: functional.hessian(squares(f), x, vectorize=True),
    ),
    "hvp, forward over reverse": ("product", lambda f, x, t: jvp(grad(squares(f)), (x,), (t,))[1]),
    "hvp, reverse over reverse": ("product", lambda f, x, t: vjp(grad(squares(f)), x)[1](t)[0]),
    "functional.hvp": ("product", lambda f, x, t: functional.hvp(squares(f), x, t)[1]),
    "functional.vhp": ("product", lambda f, x, t: functional.vhp(squares(f), x, t)[1]),
    "vmap": ("several", lambda f, x, t: vmap(f)(torch.stack([x, t]))),
    "vmap of grad": ("slopes", lambda f, x, t: vmap(grad(squares(f)))(torch.stack([x, t]))),
    "create_graph": ("product", lambda f, x, t: penalty(f, x, t)),
}
# What leaves the choice of torch's fused kernels open.
ORDINARY = [
    *("functional.jacobian, vectorized", "functional.hessian", "functional.hessian, vectorized"),
    *("functional.hvp", "functional.vhp", "create_graph"),
]


def penalty(f, x, t):
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(squares(f)(x), x, create_graph=True)
    return torch.autograd.grad(slope @ t, x)[0]


@pytest.mark.sweep(40)
@pytest.mark.parametrize("name", ["plain", "all"])
@pytest.mark.parametrize("route", ["chosen", "tiled", "direct"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_equals_the_loop(mode, route, name):
    what, derive = MODES[mode]
    # First: what is drawn and kept inside of a transform would be that transform's own tensor.
    wanted = expected(name)[what]

    def f(numbers):
        if route == "chosen":
            return along(attention, name, numbers)
        with use_route(route):
            return along(attention, name, numbers)

    assert_near(derive(f, *points()), wanted)


@pytest.mark.sweep(12)
@pytest.mark.parametrize("name", ["plain", "mask", "causal"])
@pytest.mark.parametrize("route", ["fused", "padded"])
@pytest.mark.parametrize("mode", ORDINARY)
def test_fused_kernels_have_second_derivatives(mode, route, name, monkeypatch):
    """torch's own have none: tiles take their place once a backward pass is differentiated."""
    if route == "fused":
        monkeypatch.setitem(SHAPES, "value", (2, 1, 5, 2))
        case.cache_clear()
        expected.cache_clear()
    what, derive = MODES[mode]
    wanted = expected(name)[what]
    with use_route(route), record_routes() as calls:
        found = derive(functools.partial(along, attention, name), *points())
    assert {chosen.name for _, chosen in calls} == {route}
    assert_near(found, wanted)
    case.cache_clear()
    expected.cache_clear()


def test_fused_kernels_are_refused_where_they_have_no_derivative():
    f = functools.partial(along, attention, "plain")
    for route in ("fused", "padded"):
        with use_route(route), pytest.raises(ValueError, match=r"no forward mode.*would be \"dir"):
            jvp(f, points()[:1], points()[1:])


@pytest.mark.parametrize("derive", [jacfwd, grad], ids=["forward", "reverse"])
def test_what_tiles_do_not_have_names_the_way_out(derive):
    """A fourth derivative, or a third in forward mode."""

    def value(numbers):
        with use_route("tiled"):
            return squares(functools.partial(along, attention, "plain"))(numbers)

    function = grad(value)
    for _ in range(3):
        function = grad(lambda x, inner=function: inner(x).sum())
    if derive is jacfwd:
        function = jacfwd(grad(lambda x: grad(value)(x).sum()))
    with pytest.raises(NotImplementedError, match=r'use_route\("direct"\)'):
        function(points()[0])


def test_dropout_and_second_derivatives():
    """A kernel's draw cannot be repeated: refused, with the way out; plain products have it."""
    query, key, value = (torch.randn(2, 1, n, 3).requires_grad_() for n in (3, 5, 5))

    def second():
        torch.manual_seed(3)
        output = attention(query, key, value, dropout_p=0.4)
        (slope,) = torch.autograd.grad(output.square().sum(), query, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), query)[0]

    with use_route("tiled"), pytest.raises(NotImplementedError, match=r'use_route\("direct"\)'):
        second()
    with use_route("direct"):
        assert second().abs().max() > 1e-3


def test_forward_mode_with_dropout_is_that_of_the_drawn_weights():
    tensors = [torch.randn(2, 1, n, 3) for n in (3, 5, 5)]
    changes = [torch.randn_like(x) for x in tensors]

    def drawn(step):
        torch.manual_seed(3)
        moved = [x + step * d for x, d in zip(tensors, changes, strict=True)]
        with use_route("tiled"):
            return attention(*moved, dropout_p=0.4)

    step = 1e-5
    slope = (drawn(step) - drawn(-step)) / (2 * step)
    found = jvp(drawn, (torch.tensor(0.0),), (torch.tensor(1.0),))[1]
    assert (found - slope).abs().max() < 1e-8 * slope.abs().max()
    assert slope.abs().max() > 0.1


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_draws_dropout_as_it_says(randomness):
    tensors = [torch.randn(1, 1, n, 3) for n in (3, 5, 5)]

    def drawn(scale):
        with use_route("tiled"):
            return attention(tensors[0] * scale, *tensors[1:], dropout_p=0.4)

    first, second = vmap(drawn, randomness=randomness)(torch.ones(2))
    assert torch.equal(first, second) == (randomness == "same")


def test_case_12_forward_mode_on_a_large_map():
    """By itself a 60 x 60 map is tiled; the tangent was that of the identity."""
    block = SelfAttention2d(8, gamma_init=1.0)
    x, change = torch.randn(2, 1, 8, 60, 60).unbind()
    with record_routes() as calls:
        found = jvp(block, (x,), (change,))[1]
    assert [chosen.name for _, chosen in calls] == ["tiled"]
    with use_route("direct"):
        assert_near(found, jvp(block, (x,), (change,))[1])
    assert (found - change).abs().max() > 0.01


def test_per_sample_gradients_of_multi_head_attention():
    """vmap(grad) under a padding mask, on each route, against one sample at a time."""
    module = MultiHeadAttention(6, 2)
    parameters = {k: p.detach() for k, p in module.named_parameters()}
    x, lengths = torch.randn(3, 7, 6), torch.tensor([7, 2, 0])

    def loss(parameters, x, length):
        mask = masks.length_mask(length[None], 7)
        return (
            torch.func.functional_call(module, parameters, (x[None],), {"attn_mask": mask})
            .square()
            .sum()
        )

    wanted = [grad(loss)(parameters, *each) for each in zip(x, lengths, strict=True)]
    for route in ("tiled", "direct"):
        with use_route(route):
            found = vmap(grad(loss), (None, 0, 0))(parameters, x, lengths)
        for name in ("q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.bias"):
            assert_near(found[name], torch.stack([each[name] for each in wanted]), name)

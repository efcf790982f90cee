"""Local attention against attention of all positions under the mask that specifies it."""

import pytest
import torch
from oracles import assert_accurate, assert_hides, assert_near, scalar
from torch.func import grad, jvp, vmap

from cvattn.core import RelativeGridBias, masks, record_routes, use_route
from cvattn.core.attention import criss_cross_tiles, reference_attention, tiles
from cvattn.core.local import (
    criss_cross_attention,
    neighborhood,
    neighborhood_attention,
    window_attention,
)

pytestmark = [
    pytest.mark.usefixtures("float64"),
    # torch's own: forward mode loads decompositions that are scripts.
    pytest.mark.filterwarnings("ignore:.torch.jit.script.:FutureWarning"),
]

BATCH, HEADS = 2, 2
TILE = (3, 2)  # of neighbourhoods, so that small maps have several
FUNCTIONS = {
    "window": (window_attention, masks.window_mask_2d),
    "neighborhood": (neighborhood_attention, masks.neighborhood_mask_2d),
    "criss-cross": (criss_cross_attention, masks.criss_cross_mask_2d),
}
# function, options, (H, W)
CASES = [
    ("window", {"window": (3, 4)}, (7, 11)),
    ("window", {"window": (3, 4), "shift": (1, 3)}, (11, 7)),
    ("window", {"window": (4, 3), "shift": (2, 1)}, (8, 9)),
    ("window", {"window": (4, 4), "shift": (2, 2)}, (5, 3)),  # one axis is one window
    ("window", {"window": (9, 9)}, (5, 7)),  # larger than the map
    ("window", {"window": (1, 11)}, (7, 11)),  # axial
    ("window", {"window": (7, 1)}, (7, 11)),
    ("window", {"window": (2, 3)}, (1, 7)),
    ("neighborhood", {"window": (3, 5)}, (5, 6)),  # one tile
    ("neighborhood", {"window": (3, 5)}, (13, 11)),  # several on both axes
    ("neighborhood", {"window": (1, 3)}, (1, 17)),
    ("neighborhood", {"window": (5, 1)}, (19, 1)),
    ("neighborhood", {"window": (3, 3), "dilation": 2}, (13, 8)),
    ("neighborhood", {"window": (3, 5), "dilation": (5, 1)}, (17, 11)),
    ("neighborhood", {"window": (7, 5)}, (7, 5)),  # just fits
    ("criss-cross", {}, (7, 11)),
    ("criss-cross", {}, (13, 5)),
    ("criss-cross", {}, (1, 5)),
    ("criss-cross", {}, (5, 1)),
    ("criss-cross", {}, (1, 1)),
]
FEW_CASES = [CASES[1], CASES[9], CASES[12], CASES[15]]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(neighborhood, "tile_sides", lambda window: TILE)


@pytest.fixture(params=["planned", "direct", "tiled"])
def route(request, monkeypatch):
    """The route of the plan, and the two others of them all; tiles of a few rows."""
    if request.param == "planned":
        yield request.param
        return
    monkeypatch.setattr(tiles, "TILE", 2000)
    monkeypatch.setattr(tiles, "LEAST_ROWS", 3)
    monkeypatch.setattr(criss_cross_tiles, "TILE", 200)
    monkeypatch.setattr(criss_cross_tiles, "LEAST_SIDE", 3)
    with use_route(request.param):
        yield request.param


def make_maps(size, width=3, value_width=4):
    """The strides are those of channels split into heads, which is what modules pass."""
    widths = (width, width, value_width)
    drawn = [torch.randn(BATCH, HEADS, each, *size) for each in widths]
    return [x.movedim(2, -1).requires_grad_() for x in drawn]


def make_key_mask(size):
    """Hides some keys of the first sample and all of the second."""
    mask = torch.rand(BATCH, *size) < 0.6
    mask[0, 0, 0], mask[1] = True, False
    return mask


def make_bias(name, options, size):
    """What the function takes, what the reference adds for it, and the leaf of both."""
    if name == "window":
        module = RelativeGridBias(HEADS, options["window"])
        torch.nn.init.normal_(module.table)
        whole = module(size)  # far offsets are those of the nearest, and hidden
        return module, whole, module.table
    if name == "neighborhood":
        window, steps = options["window"], options.get("dilation", 1)
        steps = (steps, steps) if isinstance(steps, int) else steps
        table = torch.randn(HEADS, *(2 * side - 1 for side in window)).requires_grad_()
        at = torch.cartesian_prod(*map(torch.arange, size))
        offsets = at[None] - at[:, None]
        index = [
            (offsets[..., i] // steps[i]).clamp(1 - window[i], window[i] - 1) + window[i] - 1
            for i in range(2)
        ]
        return table, table[:, index[0], index[1]], table
    return None, None, None


def expected_of(name, options, maps, key_mask=None, bias=None, **terms):
    size = maps[0].shape[2:4]
    mask = FUNCTIONS[name][1](*size, *options.values())
    if key_mask is not None:
        mask = mask & key_mask.flatten(1)[:, None, None]
    bias = None if bias is None else bias[None]
    flat = [x.flatten(2, 3) for x in maps]
    found = reference_attention(*flat, attn_mask=mask, attn_bias=bias, **terms)
    return found.unflatten(2, size)


@pytest.mark.parametrize(
    ("name", "options", "size", "with_all", "route"),
    [
        *((*case, with_all, "planned") for case in CASES for with_all in (False, True)),
        *((*case, True, route) for case in FEW_CASES for route in ("direct", "tiled")),
    ],
    indirect=["route"],
)
def test_equals_the_reference_forward_and_gradients(name, options, size, with_all, route):
    maps, table, bias, terms = make_maps(size), None, None, {}
    if with_all:
        terms = {"key_mask": make_key_mask(size), "scale": 0.7}
        given, bias, table = make_bias(name, options, size)
    own = {} if table is None else {"bias": given}
    actual = FUNCTIONS[name][0](*maps, **options, **own, **terms)
    expected = expected_of(name, options, maps, bias=bias, **terms)
    assert_near(actual, expected)
    leaves = [x for x, used in zip(maps, (size != (1, 1),) * 2 + (True,), strict=True) if used]
    leaves += [] if table is None else [table]
    wanted = torch.autograd.grad(scalar(expected), leaves)
    for got, want in zip(torch.autograd.grad(scalar(actual), leaves), wanted, strict=True):
        assert_near(got, want, "gradient")


@pytest.mark.parametrize(("name", "options", "size"), FEW_CASES)
@pytest.mark.parametrize(
    ("masked", "route"), [(False, "planned"), (True, "tiled")], indirect=["route"]
)
def test_second_derivative(name, options, size, masked, route):
    maps = make_maps(size)
    key_mask = make_key_mask(size) if masked else None

    def second(output):
        slopes = torch.autograd.grad(output.square().sum(), maps, create_graph=True)
        return torch.autograd.grad(sum(slope.square().sum() for slope in slopes), maps)

    wanted = second(expected_of(name, options, maps, key_mask))
    found = second(FUNCTIONS[name][0](*maps, **options, key_mask=key_mask))
    for got, want in zip(found, wanted, strict=True):
        assert_near(got, want)


@pytest.mark.parametrize(("name", "options", "size"), FEW_CASES)
@pytest.mark.parametrize(
    ("bad", "route"),
    [(float("nan"), "tiled"), (float("inf"), "planned"), (float("nan"), "direct")],
    indirect=["route"],
)
def test_what_is_hidden_may_be_anything(name, options, size, bad, route):
    function, maps = FUNCTIONS[name][0], [x.detach() for x in make_maps(size)]
    key_mask = make_key_mask(size)
    clean = function(*maps, **options, key_mask=key_mask)
    hidden = assert_hides(~key_mask)[:, None, :, :, None]
    query, key, value = maps
    query = query.clone()
    query[1] = bad  # all of its keys are hidden
    spoilt = [query, key.masked_fill(hidden, bad), value.masked_fill(hidden, bad)]
    spoilt = [x.requires_grad_() for x in spoilt]
    output = function(*spoilt, **options, key_mask=key_mask)
    assert_near(output, clean)
    for slope in torch.autograd.grad(scalar(output), spoilt):
        assert torch.isfinite(slope).all()
    assert (output[1] == 0).all()


@pytest.mark.parametrize(("name", "options", "size"), FEW_CASES)
def test_nan_reaches_those_who_see_it_and_no_others(name, options, size, route):
    """No key mask here: what is out of a window, a neighbourhood or a cross is hidden by it."""
    maps = [x.detach().clone() for x in make_maps(size)]
    y, x = size[0] // 2, size[1] // 2
    maps[1][0, 1, y, x] = float("nan")
    output = FUNCTIONS[name][0](*maps, **options)
    sees = FUNCTIONS[name][1](*size, *options.values())[:, y * size[1] + x].view(size)
    expected = torch.zeros(BATCH, HEADS, *size, dtype=torch.bool)
    expected[0, 1] = assert_hides(sees)
    assert torch.equal(output.isnan().any(-1), expected)


@pytest.mark.parametrize(("name", "options", "size"), FEW_CASES)
def test_dropout_drops_weights(name, options, size, route):
    """Values of 1 give 1 without dropout; the mean stays, whichever weights are dropped."""
    query, key, value = (x.detach() for x in make_maps(size, value_width=1))
    output = FUNCTIONS[name][0](query * 0, key, value * 0 + 1, **options, dropout_p=0.25)
    assert output.std() > 0.05
    assert abs(output.mean() - 1) < 0.1
    with pytest.raises(ValueError, match="not a probability"):
        FUNCTIONS[name][0](query, key, value, **options, dropout_p=1.0)


@pytest.mark.parametrize(("name", "options", "size"), FEW_CASES)
@pytest.mark.parametrize("route", ["tiled"], indirect=True)
def test_the_gradient_is_that_of_the_weights_that_were_kept(name, options, size, route):
    maps = [x[:1, :1, :5, :7].detach().requires_grad_() for x in make_maps(size, 2, 2)]

    def drawn(*inputs):
        torch.manual_seed(1)
        return FUNCTIONS[name][0](*inputs, **options, dropout_p=0.4)

    if "dilation" in options:
        options = options | {"window": (1, 3)}
    assert torch.autograd.gradcheck(drawn, maps, raise_exception=False, fast_mode=True)


@pytest.mark.parametrize(("name", "options", "size"), FEW_CASES)
@pytest.mark.parametrize(
    ("dtype", "masked", "route"),
    [
        (torch.bfloat16, True, "tiled"),
        (torch.bfloat16, False, "planned"),
        (torch.float16, True, "planned"),
    ],
    indirect=["route"],
)
def test_half_precision_is_as_exact_as_the_reference(name, options, size, masked, dtype, route):
    maps = [x.detach().to(dtype) for x in make_maps(size)]
    key_mask = make_key_mask(size) if masked else None

    def slopes(function, *inputs):
        inputs = [x.detach().requires_grad_() for x in inputs]
        output = function(*inputs)
        return (output, *torch.autograd.grad(scalar(output), inputs))

    actual = slopes(lambda *x: FUNCTIONS[name][0](*x, **options, key_mask=key_mask), *maps)
    assert actual[0].dtype == dtype
    assert_accurate(
        actual, lambda *x: slopes(lambda *y: expected_of(name, options, y, key_mask), *x), *maps
    )


@pytest.mark.parametrize(("name", "options", "size"), FEW_CASES)
@pytest.mark.parametrize("route", ["planned"], indirect=True)
def test_autocast(name, options, size, route):
    maps = [x.detach().float() for x in make_maps(size)]
    with torch.autocast("cpu", torch.bfloat16):
        output = FUNCTIONS[name][0](*maps, **options)
    assert output.dtype == torch.bfloat16
    assert_accurate(output, lambda *x: expected_of(name, options, x), *(x.bfloat16() for x in maps))


@pytest.mark.parametrize(("name", "options", "size"), FEW_CASES)
def test_function_transforms(name, options, size):
    maps = [x.detach() for x in make_maps(size)]
    tangents = [torch.randn_like(x) for x in maps]

    def ours(*inputs):
        return FUNCTIONS[name][0](*inputs, **options)

    def theirs(*inputs):
        return expected_of(name, options, inputs)

    assert_near(*(jvp(f, tuple(maps), tuple(tangents))[1] for f in (ours, theirs)))
    several = [torch.stack([x, x.flip(0) * 0.3]) for x in maps]
    assert_near(vmap(ours)(*several), vmap(theirs)(*several))

    def slope_of(f):
        return vmap(grad(lambda q, k, v: scalar(f(q, k, v)), argnums=(0, 1, 2)))(*several)

    for got, want in zip(slope_of(ours), slope_of(theirs), strict=True):
        assert_near(got, want)


@pytest.mark.parametrize(("name", "options", "size"), FEW_CASES)
def test_meta_and_empty_batches(name, options, size):
    function = FUNCTIONS[name][0]
    maps = [x.detach() for x in make_maps(size)]
    on_meta = function(*(x.to("meta") for x in maps), **options)
    assert on_meta.is_meta
    assert on_meta.shape == (BATCH, HEADS, *size, 4)
    assert function(*(x[:0] for x in maps), **options).shape == (0, HEADS, *size, 4)


def test_forward_mode_over_tiles_of_crosses_is_refused():
    """Where scores are few they are stored, and then there is every derivative."""
    maps = [x.detach() for x in make_maps((7, 11))]
    with use_route("tiled"), pytest.raises(NotImplementedError, match=r'use_route\("direct"\)'):
        jvp(criss_cross_attention, tuple(maps), tuple(maps))
    with use_route("tiled"):
        mapped = vmap(criss_cross_attention)(*(torch.stack([x.flip(0), x]) for x in maps))
    assert_near(mapped[1], criss_cross_attention(*maps))
    with use_route("fused"), pytest.raises(ValueError, match="one softmax over a row and a column"):
        criss_cross_attention(*maps)


def test_routes_are_recorded():
    maps = make_maps((7, 11))
    with record_routes() as record:
        window_attention(*maps, window=(3, 4))
        criss_cross_attention(*maps)
    *windows, (call, route) = record
    assert {(each.length, each.key_length) for each, _ in windows} == {
        (12, 12),
        (9, 9),
        (4, 4),
        (3, 3),
    }
    assert (call.length, call.key_length, route.name) == (77, 17, "direct")


WRONG = [
    ("window", {"window": (0, 2)}, {}, "window=(0, 2); expected two integers of at least 1"),
    ("window", {"window": 3}, {}, "window=3; expected two integers, (rows, columns)"),
    ("window", {"window": (3, 2), "shift": (1, 2)}, {}, "shift=(1, 2) must be smaller than"),
    ("window", {"window": (3, 2)}, {"key_mask": (2, 6)}, "expected (B, H, W) = (2, 5, 7)"),
    ("neighborhood", {"window": (3, 4)}, {}, "window=(3, 4) must be odd on each axis"),
    ("neighborhood", {"window": (7, 3)}, {}, "a window of at most 5 there"),
    ("neighborhood", {"window": (3, 3), "dilation": 2}, {}, "needs a height of at least 6"),
    ("neighborhood", {"window": (3, 3)}, {"bias": (3, 3, 3)}, "2 * kw - 1) = (2, 5, 5)"),
    ("criss-cross", {}, {"query": (2, 2, 5, 4, 3)}, "they must be equal"),
    ("criss-cross", {}, {"query": (2, 2, 5, 7, 2)}, "query is 2 wide, key is 3 wide"),
    ("criss-cross", {}, {"query": (2, 5, 7, 3)}, "expected 5 dimensions"),
]


@pytest.mark.parametrize(("name", "options", "shapes", "message"), WRONG)
def test_what_is_refused(name, options, shapes, message):
    given = dict(zip(("query", "key", "value"), make_maps((5, 7)), strict=True))
    for key, shape in shapes.items():
        given[key] = torch.ones(shape, dtype=torch.bool if key == "key_mask" else None)
    with pytest.raises(ValueError) as caught:
        FUNCTIONS[name][0](**given, **options)
    assert message in str(caught.value)


def test_types_that_are_refused():
    maps = make_maps((5, 7))
    with pytest.raises(TypeError, match="True = may be attended"):
        criss_cross_attention(*maps, key_mask=torch.ones(2, 5, 7))
    with pytest.raises(TypeError, match="cast them to one dtype"):
        criss_cross_attention(maps[0].float(), *maps[1:])
    table = torch.ones(2, 5, 5, dtype=torch.bool)
    with pytest.raises(TypeError, match="expected a float tensor"):
        neighborhood_attention(*maps, window=(3, 3), bias=table)
    with pytest.raises(ValueError, match=r"bias\(\(3, 7\)\) has shape \(1, 2\)"):
        window_attention(*maps, window=(3, 9), bias=lambda grid: torch.ones(1, 2))
    with pytest.raises(ValueError, match="a map without positions"):
        window_attention(*(x[:, :, :0] for x in maps), window=(3, 9))


# The functions of a compiled or exported program, with all that they take.
PROGRAMS = {
    "window": lambda q, k, v, mask: window_attention(
        q, k, v, window=(4, 3), shift=(2, 1), key_mask=mask, bias=_bias_of_grid
    ),
    "neighborhood": lambda q, k, v, mask: neighborhood_attention(
        q, k, v, window=(3, 5), dilation=(2, 1), key_mask=mask
    ),
    "criss-cross": lambda q, k, v, mask: criss_cross_attention(q, k, v, key_mask=mask),
}


def _bias_of_grid(grid):
    return torch.arange(HEADS * (grid[0] * grid[1]) ** 2).view(HEADS, grid[0] * grid[1], -1).sin()


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("masked", [False, True])
def test_compiled(name, masked, route):
    maps, program = make_maps((13, 11)), PROGRAMS[name]
    mask = make_key_mask((13, 11)) if masked else None
    torch._dynamo.reset()
    actual = torch.compile(program, fullgraph=True, backend="aot_eager")(*maps, mask)
    expected = program(*maps, mask)
    assert_near(actual, expected)
    wanted = torch.autograd.grad(scalar(expected), maps)
    for got, want in zip(torch.autograd.grad(scalar(actual), maps), wanted, strict=True):
        assert_near(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_exported_with_an_open_batch(name):
    class Program(torch.nn.Module):
        def forward(self, q, k, v, mask):
            return PROGRAMS[name](q, k, v, mask)

    given = [*(x.detach() for x in make_maps((13, 11))), make_key_mask((13, 11))]
    batch = {0: torch.export.Dim("batch", min=1)}
    with torch.no_grad():
        program = torch.export.export(Program(), tuple(given), dynamic_shapes=[batch] * 4)
    assert not any("cvattn" in str(node.target) for node in program.graph.nodes)
    more = [torch.cat([x, x.flip(0), x[:1]]) for x in given]
    assert_near(program.module()(*more), PROGRAMS[name](*more))

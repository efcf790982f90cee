"""Windows, neighbourhoods, axes and crosses equal the global block under a mask of what is seen."""

from functools import partial

import pytest
import torch
from map_forms import CHANNELS, acting
from oracles import ROUNDING, assert_near, scalar
from torch import Tensor, nn

from cvattn import SelfAttention2d, capture_attention, insert_attention
from cvattn.blocks import (
    AxialAttention2d,
    AxisAttention2d,
    CrissCrossAttention2d,
    NeighborhoodAttention2d,
    WindowAttention2d,
)
from cvattn.testing import check_attention

pytestmark = pytest.mark.usefixtures("float64")
SIZE = (7, 11)
UNET = {"head_dim": 4, "groups": 3}
BLOCKS = {
    "window": partial(WindowAttention2d, CHANNELS, window=3),
    "window, shifted": partial(
        WindowAttention2d.unet, CHANNELS, window=(3, 4), shift=(1, 3), **UNET
    ),
    "window, where": partial(
        WindowAttention2d,
        CHANNELS,
        window=4,
        shift=2,
        relative_bias=True,
        qk_channels=6,
        num_heads=3,
    ),
    "window, larger": partial(WindowAttention2d, CHANNELS, window=16),
    "neighborhood": partial(NeighborhoodAttention2d, CHANNELS, window=3),
    "neighborhood, where": partial(
        NeighborhoodAttention2d.unet, CHANNELS, window=(5, 3), relative_bias=True, **UNET
    ),
    "neighborhood, dilated": partial(
        NeighborhoodAttention2d, CHANNELS, window=3, dilation=(2, 3), relative_bias=True
    ),
    "rows": partial(AxisAttention2d.unet, CHANNELS, axis="row", **UNET),
    "columns": partial(AxisAttention2d, CHANNELS, axis="column"),
    "criss-cross": partial(CrissCrossAttention2d, CHANNELS),
    "criss-cross, unet": partial(CrissCrossAttention2d.unet, CHANNELS, **UNET),
}
blocks = pytest.mark.parametrize("make", BLOCKS.values(), ids=BLOCKS.keys())


def as_global(block: nn.Module) -> SelfAttention2d:
    """The global block with the same parameters: the very tensors."""
    twin = SelfAttention2d(
        CHANNELS,
        qk_channels=block.query.out_channels,
        value_channels=None if block.proj is None else block.value.out_channels,
        num_heads=block.num_heads,
        norm_groups=None if block.norm is None else block.norm.num_groups,
        scale=block.scale,
        gamma_init=block.gamma_init,
    )
    for name in ("norm", "query", "key", "value", "proj", "gamma"):
        setattr(twin, name, getattr(block, name))
    bias = block._row_bias(SIZE, None)
    if bias is not None:
        twin._bias = lambda size: bias[None]
    return twin.eval()


def results(block: nn.Module, run, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    output = run(x)
    named = {"input": x} | dict(block.named_parameters())
    found = torch.autograd.grad(scalar(output), list(named.values()))
    return {"output": output.detach()} | dict(zip(named, found, strict=True))


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert_near(got["output"], want["output"])
    size = max(each.abs().max() for name, each in want.items() if name != "output")
    for name, each in want.items():
        assert name == "output" or (got[name] - each).abs().max() <= ROUNDING * size, name


@blocks
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_global_block_under_the_mask(make, masked):
    block, x = acting(make()), torch.randn(2, CHANNELS, *SIZE)
    mask = torch.rand(2, *SIZE) > 0.4 if masked else None
    seen = block._visible(SIZE, None, x.device)
    if masked:
        mask[1, :3] = False  # whole windows see nothing
    got = results(block, lambda x: block(x, mask=mask), x)
    want = results(block, lambda x: as_global(block)(x, mask=mask, attn_mask=seen), x)
    assert_same(got, want)
    if masked:
        hidden = torch.where(mask[:, None], x, float("nan"))
        real = mask[:, None].expand_as(x)
        assert_near(block(hidden, mask=mask)[real], got["output"][real])


@blocks
def test_weights_of_rows_are_those_of_the_global_block(make):
    block, x = acting(make()), torch.randn(2, CHANNELS, *SIZE)
    mask = torch.rand(2, *SIZE) > 0.4
    seen = block._visible(SIZE, None, x.device)
    _, want = as_global(block)(x, mask=mask, attn_mask=seen, need_weights=True)
    output, got = block(x, mask=mask, need_weights=True)
    assert_near(got, want)
    rows = [0, 5, 40, 76]
    with capture_attention(nn.Sequential(block), rows=rows) as maps:
        assert torch.equal(block(x, mask=mask), output)
    assert_near(maps["0"], want[:, :, rows])
    assert torch.equal(
        block(x, mask=mask, need_weights=True, rows=torch.tensor(rows))[1], maps["0"]
    )
    assert maps.on_grid("0").shape[-2:] == SIZE


@pytest.mark.parametrize("make", [AxialAttention2d, partial(AxialAttention2d.unet, **UNET)])
def test_axial_is_columns_then_rows_and_reaches_everywhere(make):
    block, x = acting(make(CHANNELS)), torch.randn(2, CHANNELS, *SIZE)
    mask = torch.rand(2, *SIZE) > 0.4
    mask[:, 2, 3] = True
    want = x
    for branch in (block.columns, block.rows):
        seen = branch._visible(SIZE, None, x.device)
        want = as_global(branch)(want, mask=mask, attn_mask=seen)
    assert_near(block(x, mask=mask), want)
    if block.rows.norm is None:
        x.requires_grad_()
        (slope,) = torch.autograd.grad(block(x)[0, :, 2, 3].sum(), x)
        assert slope[0].abs().amax(0).min() > 0
        assert not slope[1].any()
    with capture_attention(block, rows=[1]) as maps:
        block(x)
    assert sorted(maps) == ["columns", "rows"]


ALL = BLOCKS | {"axial": partial(AxialAttention2d, CHANNELS)}


@pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
def test_new_ones_are_the_identity_and_can_be_inserted(make):
    x = torch.randn(2, 3, *SIZE)
    net = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1), nn.ReLU(), nn.Conv2d(CHANNELS, 2, 1))
    before = net.double()(x)
    insert_attention(net, after="1", block=lambda channels: make(), example=x)
    assert torch.equal(net(x), before)
    scalar(net(x)).backward()
    ends = [end.grad for m in net.modules() if hasattr(m, "_last") for end in m._last()]
    assert all(grad.abs().max() > 1e-4 for grad in ends)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
def test_the_checks_of_attention_pass(make):
    skip = ("mixing", "weights")  # which look for all of a map
    report = check_attention(make(), torch.empty(1, CHANNELS, *SIZE), positions=True, skip=skip)
    assert report.passed.keys() >= {"sizes", "samples", "gradients", "eval"}


@pytest.mark.slow
@pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
def test_compiled_and_exported(make):
    block, x = acting(make()), torch.randn(2, CHANNELS, *SIZE)
    mask = torch.rand(2, *SIZE) > 0.3
    program = torch.export.export(block, (x,), {"mask": mask}).module()
    assert_near(program(x, mask=mask), block(x, mask=mask))
    opened = torch.export.export(block, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    other = torch.randn(3, CHANNELS, *SIZE)
    assert_near(opened.module()(other), block(other))
    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    assert_same(results(block, compiled, x), results(block, block, x))


REFUSED = {
    "window": (lambda: WindowAttention2d(8, window=(3, 4, 5)), r"window=\(3, 4, 5\); expected one"),
    "shift": (lambda: WindowAttention2d(8, window=3, shift=3), r"shift=\(3, 3\) must be smaller"),
    "even": (lambda: NeighborhoodAttention2d(8, window=4), "must be odd"),
    "small": (
        lambda: NeighborhoodAttention2d(8)(torch.ones(1, 8, 5, 9)),
        r"needs a height of at least 7, the map has 5",
    ),
    "axis": (lambda: AxisAttention2d(8, axis="rows"), "axis='rows'; expected 'row' or 'column'"),
    "typo": (lambda: WindowAttention2d(8, windows=3), "windows"),
}


@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(build, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build()


@pytest.mark.parametrize("make", [AxialAttention2d, partial(AxialAttention2d.unet, **UNET)])
def test_a_state_without_values_for_an_acting_block_is_said(make):
    net = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1), nn.ReLU())
    before = net.state_dict()
    insert_attention(net, after="1", block=make)
    net.load_state_dict(before)  # as new: nothing to be said, and a warning is an error here
    acting(net)
    with pytest.warns(UserWarning, match=r"keeps the values that it has \((gamma -0.7|its proj)"):
        net.load_state_dict(before)

"""Rotary positions: by complex numbers, against timm's layers, and where the tables come from."""

import math

import pytest
import torch
from oracles import assert_near
from timm.layers.pos_embed_sincos import (
    RotaryEmbeddingCat,
    RotaryEmbeddingDinoV3,
    apply_rot_embed_cat,
)

from cvattn.core import AxialRotary, Rotary, Rotation
from cvattn.core.rotary_grid import grid_coordinates

GRID = (5, 7)
double = pytest.mark.usefixtures("float64")


def by_complex_numbers(x, angles, pairs):
    """(B, N, heads, E) and angles (N, E/2): each pair is a number that e^(i angle) multiplies."""
    half = x.shape[-1] // 2
    places = [(2 * i, 2 * i + 1) if pairs == "interleaved" else (i, i + half) for i in range(half)]
    turned = torch.empty_like(x)
    for index, (real, imaginary) in enumerate(places):
        factor = torch.polar(torch.ones(len(angles)), angles[:, index])[:, None]
        product = torch.complex(x[..., real], x[..., imaginary]) * factor
        turned[..., real], turned[..., imaginary] = product.real, product.imag
    return turned


def axial_angles(rows, columns, width, theta):
    count = width // 4
    rates = torch.tensor([theta ** (-i / count) for i in range(count)])
    return torch.cat([rows[:, None] * rates, columns[:, None] * rates], dim=1)


@double
@pytest.mark.parametrize("pairs", ["interleaved", "halves"])
@pytest.mark.parametrize(("length", "start"), [(7, 0), (3, 5), (4, 30)])
def test_a_sequence_by_complex_numbers(pairs, length, start):
    rotary = Rotary(10, theta=50.0, pairs=pairs, max_length=11)
    x = torch.randn(2, length, 3, 10, requires_grad=True)
    rates = torch.tensor([50.0 ** (-2 * i / 10) for i in range(5)])
    angles = (start + torch.arange(float(length)))[:, None] * rates
    got, want = rotary(length, start=start).turn(x), by_complex_numbers(x, angles, pairs)
    assert_near(got, want)
    weights = torch.randn_like(x)
    slopes = [torch.autograd.grad((each * weights).sum(), x)[0] for each in (got, want)]
    assert_near(*slopes)
    positions = (start + torch.arange(length)).expand(2, -1)
    assert_near(rotary.at(positions).turn(x), want)


@double
@pytest.mark.parametrize("pairs", ["interleaved", "halves"])
@pytest.mark.parametrize("grid", [GRID, (3, 8)])
@pytest.mark.parametrize("prefix", [0, 3])
def test_a_grid_by_complex_numbers(pairs, grid, prefix):
    rotary = AxialRotary(12, GRID, theta=30.0, pairs=pairs, prefix=prefix)
    rows, columns = (
        torch.cat([torch.zeros(prefix), part.flatten()])
        for part in torch.meshgrid(*map(torch.arange, map(float, grid)), indexing="ij")
    )
    x = torch.randn(2, prefix + grid[0] * grid[1], 3, 12)
    got = rotary(grid).turn(x)
    assert_near(got, by_complex_numbers(x, axial_angles(rows, columns, 12, 30.0), pairs))
    assert torch.equal(got[:, :prefix], x[:, :prefix])
    rotary.resample(grid)
    assert_near(rotary(grid).turn(x), got)
    assert rotary.table.shape == (2, x.shape[1], 6)


@double
@pytest.mark.parametrize(
    ("kind", "theirs", "options"),
    [
        (
            RotaryEmbeddingCat,
            {"in_pixels": False, "temperature": 10000.0},
            {"theta": 10000.0},
        ),
        (
            RotaryEmbeddingCat,
            {"in_pixels": False, "temperature": 50.0, "ref_feat_shape": [4, 3], "grid_offset": 1.0},
            {"theta": 50.0, "reference": (4, 3), "offset": 1.0},
        ),
        (
            RotaryEmbeddingDinoV3,
            {"temperature": 100.0},
            {"theta": 100.0, "coordinates": "centered", "pairs": "halves"},
        ),
    ],
)
def test_equals_timm(kind, theirs, options):
    """Products to the last digits with timm's table; the tables to float32, in which timm counts"""
    theirs = kind(24, feat_shape=list(GRID), **theirs)
    ours = AxialRotary(24, GRID, **options)(GRID)
    halves = ours.pairs == "halves"
    table = theirs.get_embed().double()
    sin, cos = (part[:, :12] if halves else part[:, ::2] for part in table.chunk(2, dim=-1))
    eps = torch.finfo(torch.float32).eps
    far = grid_coordinates(GRID, options.get("coordinates", "index")).abs().max().item()
    for got, want in ((ours.cos, cos), (ours.sin, sin)):
        assert (got - want).abs().max() <= 8 * far * eps
    x = torch.randn(2, 35, 3, 24)
    want = apply_rot_embed_cat(x.transpose(1, 2), table, half=halves).transpose(1, 2)
    assert_near(Rotation(cos, sin, ours.pairs).turn(x), want)


@double
def test_products_depend_on_how_far_apart_tokens_are():
    rotary = Rotary(8)
    q, k = torch.randn(8), torch.randn(8)
    scores = rotary(9).turn(q.expand(1, 9, 1, 8)) * rotary(9, start=4).turn(k.expand(1, 9, 1, 8))
    assert_near(scores.sum(-1)[0, :, 0], scores.sum(-1)[0, :1, 0].expand(9))
    assert (rotary(9).turn(q.expand(1, 9, 1, 8)) @ k).std() > 1e-2


@double
def test_gradients_reach_positions():
    places = torch.rand(2, 5, requires_grad=True)
    x = torch.randn(2, 5, 3, 8)
    assert torch.autograd.gradcheck(lambda p: Rotary(8).at(p).turn(x), places)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tables_are_never_in_half_precision(dtype):
    """Positions 200 to 300 in bfloat16 would be off by whole turns."""
    for rotary in (Rotary(8).to(dtype), AxialRotary(8, (300, 2)).to(dtype)):
        want = torch.float64 if dtype == torch.float64 else torch.float32
        assert rotary.table.dtype == want
        exact = rotary._exact()
        error = (rotary.table.double() - exact).abs().max()
        assert error <= torch.finfo(want).eps
    rotation = Rotary(8).to(dtype)(100, start=450)
    x = torch.randn(1, 100, 2, 8, dtype=dtype)
    turned = rotation.turn(x)
    assert turned.dtype == dtype
    want = Rotation(rotation.cos.double(), rotation.sin.double()).turn(x.double())
    assert (turned.double() - want).abs().max() <= 4 * torch.finfo(dtype).eps * want.abs().max()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rotary(7), "head_dim=7 must be divisible by 2"),
        (lambda: AxialRotary(10, GRID), "head_dim=10 must be divisible by 4"),
        (lambda: Rotary(8, theta=0.0), "theta=0.0 must be above 0"),
        (lambda: Rotary(8, pairs="half"), "pairs='half'; expected"),
        (lambda: AxialRotary(8, GRID, coordinates="pixels"), "coordinates='pixels'; expected"),
        (
            lambda: AxialRotary(8, GRID, coordinates="centered", reference=(3, 3)),
            "centered ones need none",
        ),
        (lambda: Rotary(8)(5).turn(torch.randn(2, 4, 3, 8)), "for 5 tokens.*given 4 tokens"),
        (lambda: Rotary(8)(5).turn(torch.randn(2, 5, 3, 6)), "head_dim=8; given .*head_dim=6"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_centered_coordinates_go_from_edge_to_edge():
    rows, columns = grid_coordinates((2, 4), "centered").T / (2 * math.pi)
    assert rows.tolist() == pytest.approx([-0.5] * 4 + [0.5] * 4)
    assert columns.tolist() == pytest.approx([-0.75, -0.25, 0.25, 0.75] * 2)

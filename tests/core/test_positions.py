"""Positions: tables against loops, and grids that are never confused."""

import math

import pytest
import torch
from oracles import assert_near

from cvattn.core.positions import (
    LearnedGridPositions,
    SinusoidalPositions,
    sincos_2d,
    sinusoidal_1d,
)
from cvattn.core.relative_bias import RelativeGridBias

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("dim", [1, 2, 7, 12])
@pytest.mark.parametrize("start", [0, 5])
def test_sinusoidal_1d(dim, start):
    table = sinusoidal_1d(11, dim, start=start)
    assert table.dtype == torch.get_default_dtype()
    wanted = torch.zeros(11, dim)
    for position in range(11):
        for column in range(dim):
            angle = (position + start) / 10000 ** (2 * (column // 2) / dim)
            wanted[position, column] = math.sin(angle) if column % 2 == 0 else math.cos(angle)
    assert_near(table, wanted)


@pytest.mark.parametrize(("height", "width", "dim"), [(3, 5, 8), (5, 3, 4), (1, 7, 12)])
def test_sincos_2d(height, width, dim):
    table = sincos_2d(height, width, dim)
    quarter = dim // 4
    wanted = torch.zeros(height * width, dim)
    for y in range(height):
        for x in range(width):
            for k in range(quarter):
                frequency = 10000 ** (-k / quarter)
                token = wanted[y * width + x]
                token[k], token[quarter + k] = math.sin(y * frequency), math.cos(y * frequency)
                token[2 * quarter + k] = math.sin(x * frequency)
                token[3 * quarter + k] = math.cos(x * frequency)
    assert_near(table, wanted)
    assert len({tuple(row) for row in table.tolist()}) == height * width


def test_sincos_2d_refuses_widths_that_do_not_divide():
    with pytest.raises(ValueError, match="dim=10 must be divisible by 4"):
        sincos_2d(3, 5, 10)


class TestSinusoidalPositions:
    @pytest.mark.parametrize("dim", [6, 7])
    def test_adds_the_table(self, dim):
        x = torch.randn(2, 5, dim)
        assert_near(SinusoidalPositions(dim)(x) - x, sinusoidal_1d(5, dim).expand(2, -1, -1))

    def test_longer_than_the_table(self):
        x = torch.zeros(2, 11, 7)
        short, long = SinusoidalPositions(7, max_length=3), SinusoidalPositions(7, max_length=64)
        assert_near(short(x), long(x))
        assert_near(short(x[:, :2], start=9), long(x)[:, 9:])
        assert_near(short(x[:, :1], start=2), long(x)[:, 2:3])

    def test_padded_positions_get_zeros(self):
        x = torch.randn(3, 5, 7)
        output = SinusoidalPositions(7)(x, lengths=torch.tensor([5, 2, 0]))
        full = SinusoidalPositions(7)(x)
        assert torch.equal(output[0], full[0])
        assert torch.equal(output[1, :2], full[1, :2])
        assert torch.equal(output[1, 2:], x[1, 2:])
        assert torch.equal(output[2], x[2])

    def test_keeps_the_dtype_and_stores_nothing(self):
        module = SinusoidalPositions(7)
        assert module(torch.zeros(1, 3, 7, dtype=torch.bfloat16)).dtype == torch.bfloat16
        assert not module.state_dict()

    def test_refuses_another_width(self):
        with pytest.raises(ValueError, match="tokens are 5 wide, positions 7"):
            SinusoidalPositions(7)(torch.zeros(1, 3, 5))


class TestLearnedGridPositions:
    def test_adds_row_by_row(self):
        module = LearnedGridPositions(4, (3, 5))
        x = torch.randn(2, 15, 4)
        assert torch.equal(module(x, grid=(3, 5)), x + module.table)
        assert len({tuple(row) for row in module.table.tolist()}) == 15

    @pytest.mark.parametrize("grid", [(5, 3), (15, 1), (3, 4)])
    def test_another_grid_is_refused_even_with_as_many_tokens(self, grid):
        module = LearnedGridPositions(4, (3, 5)).eval()
        with pytest.raises(ValueError, match=r"grid of \(3, 5\) tokens.*resample") as error:
            module(torch.zeros(1, grid[0] * grid[1], 4), grid=grid)
        assert str(grid) in str(error.value)

    @pytest.mark.parametrize("grid", [(5, 3), (15, 1), (3, 4), (7, 11)])
    def test_another_grid_is_interpolated_in_training(self, grid):
        module = LearnedGridPositions(4, (3, 5))
        added = module(torch.zeros(1, grid[0] * grid[1], 4), grid=grid)
        added.square().sum().backward()
        assert module.table.grad.count_nonzero() > 0
        if grid == (5, 3):
            assert not torch.allclose(added[0], module.table)
        module.resample(grid)
        assert torch.equal(added[0], module.table)

    def test_the_grid_is_in_the_state_and_another_one_is_not_loaded(self):
        state = LearnedGridPositions(4, (3, 5)).state_dict()
        assert state["grid"].tolist() == [3, 5]
        with pytest.raises(ValueError, match=r"learned on a grid of \(3, 5\).*has \(5, 3\)"):
            LearnedGridPositions(4, (5, 3)).load_state_dict(state)
        again = LearnedGridPositions(4, (3, 5))
        again.load_state_dict(state)
        assert torch.equal(again.table, state["table"])

    def test_resample_keeps_axes_apart(self):
        """Columns that vary with the row alone still do, those with the column alone too."""
        module = LearnedGridPositions(2, (5, 7))
        y = torch.arange(5.0)[:, None].expand(5, 7)
        x = torch.arange(7.0)[None].expand(5, 7)
        with torch.no_grad():
            module.table.copy_(torch.stack([y, x], -1).flatten(0, 1))
        module.resample((11, 3))
        assert module.table.shape == (33, 2)
        table = module.table.detach().unflatten(0, (11, 3))
        assert_near(table[:, 0, 0], table[:, 2, 0])
        assert_near(table[0, :, 1], table[10, :, 1])
        assert (table[:, 0, 0].diff() > 0).all()
        assert (table[0, :, 1].diff() > 0).all()
        # The middle of the picture stays in the middle.
        assert_near(table[5, 1], torch.tensor([2.0, 3.0]))
        assert module.grid.tolist() == [11, 3]
        assert module(torch.zeros(1, 33, 2), grid=(11, 3)).shape == (1, 33, 2)
        with pytest.raises(ValueError, match=r"grid of \(11, 3\)"):
            module.eval()(torch.zeros(1, 35, 2), grid=(5, 7))
        assert isinstance(module.table, torch.nn.Parameter)
        assert module.table.requires_grad

    def test_resample_of_a_constant_and_to_the_same_grid(self):
        module = LearnedGridPositions(3, (5, 7))
        before = module.table
        module.resample((5, 7))
        assert module.table is before
        with torch.no_grad():
            module.table.copy_(torch.tensor([1.0, -2.0, 3.0]).expand(35, 3))
        module.resample((2, 9))
        assert_near(module.table, torch.tensor([1.0, -2.0, 3.0]).expand(18, 3))


@pytest.mark.parametrize("module", ["positions", "relative bias"])
def test_an_optimiser_made_before_resampling_still_trains_the_table(module):
    if module == "positions":
        owner, grid = LearnedGridPositions(6, (3, 5)), (4, 7)
        run = lambda: owner(torch.zeros(1, 28, 6), grid=grid)  # noqa: E731
    else:
        owner, grid = RelativeGridBias(2, (3, 5)), (4, 7)
        run = lambda: owner(grid)  # noqa: E731
    owner.table.grad = torch.ones_like(owner.table)
    optimiser, before = torch.optim.SGD(owner.parameters(), lr=0.1), owner.table
    owner.resample(grid)
    assert owner.table is before
    assert owner.table.grad is None  # that was of another shape
    values = owner.table.detach().clone()
    run().sum().backward()
    optimiser.step()
    assert not torch.equal(owner.table, values)
    assert owner.table.shape == values.shape

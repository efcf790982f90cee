"""RelativeGridBias: offsets, where heads begin to look, smaller and larger grids."""

import pytest
import torch
from oracles import assert_near

from cvattn.core import Encoder, RelativeGridBias


def drawn(heads: int = 3, grid: tuple[int, int] = (5, 7)) -> RelativeGridBias:
    bias = RelativeGridBias(heads, grid)
    torch.nn.init.normal_(bias.table)
    return bias


@pytest.mark.parametrize("grid", [(5, 7), (2, 3), (1, 1), (5, 1)])
def test_the_bias_is_that_of_the_offset_from_query_to_key(grid):
    bias = drawn()
    height, width = grid
    got = bias(grid)
    assert got.shape == (3, height * width, height * width)
    for query in range(height * width):
        for key in range(height * width):
            row = key // width - query // width
            column = key % width - query % width
            assert torch.equal(got[:, query, key], bias.table[:, row + 4, column + 6])


@pytest.mark.parametrize("heads", [1, 2, 3, 4])
def test_heads_begin_local_and_each_beside_its_query(heads):
    """Untrained, on scores of 0: most weight is near, and the means lie 0.7 tokens off, apart."""
    weights = RelativeGridBias(heads, (13, 13))((13, 13)).softmax(-1)[:, 84].unflatten(-1, (13, 13))
    place = torch.arange(13.0) - 6
    row = (weights.sum(2) * place).sum(1)
    column = (weights.sum(1) * place).sum(1)
    assert torch.allclose(row**2 + column**2, torch.tensor(0.5), atol=0.1)
    near = weights[:, 4:9, 4:9].sum((1, 2))
    assert (near > 0.6).all()
    apart = torch.cdist(*[torch.stack([row, column], 1)] * 2) + 9 * torch.eye(heads)
    assert (apart > 0.9).all()


@pytest.mark.usefixtures("float64")
def test_it_moves_with_the_image():
    """Tokens moved by one row and one column give outputs moved as far, away from the edges."""
    torch.manual_seed(0)
    encoder, bias = Encoder(12, 3, 20, 1).eval(), drawn(3, (9, 9))
    with torch.no_grad():
        bias.table[:] = -torch.inf
        bias.table[:, 7:10, 7:10] = torch.randn(3, 3, 3)  # neighbours alone
        image = torch.randn(1, 9, 9, 12)
        moved = image.roll((1, 1), dims=(1, 2))
        outputs = [
            encoder(x.flatten(1, 2), attn_bias=bias((9, 9))[None]).unflatten(1, (9, 9))
            for x in (image, moved)
        ]
    assert_near(outputs[0][:, 2:7, 2:7], outputs[1][:, 3:8, 3:8])
    assert not torch.allclose(outputs[0][:, 2:7, 2:7], outputs[1][:, 2:7, 2:7], atol=1e-2)


def test_gradients_reach_every_offset_and_count_its_pairs():
    bias = drawn()
    bias((5, 7)).sum().backward()
    rows = 5 - (torch.arange(9) - 4).abs()
    columns = 7 - (torch.arange(13) - 6).abs()
    assert torch.equal(bias.table.grad, (rows[:, None] * columns).float().expand(3, -1, -1))


@pytest.mark.parametrize("grid", [(6, 4), (3, 9), (5, 7)])
def test_on_another_grid_the_nearest_offset_counts(grid):
    """And a table made for that grid says the same."""
    bias = drawn()
    table, got = bias.table.detach().clone(), bias(grid)
    height, width = grid
    for query in range(height * width):
        for key in range(height * width):
            row = min(max(key // width - query // width, -4), 4)
            column = min(max(key % width - query % width, -6), 6)
            assert torch.equal(got[:, query, key], table[:, row + 4, column + 6])
    bias.resample(grid)
    assert bias.table.shape == (3, 2 * height - 1, 2 * width - 1)
    assert bias.table.requires_grad
    assert torch.equal(bias(grid), got)

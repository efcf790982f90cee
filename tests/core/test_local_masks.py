"""The masks of local attention against loops over positions that share nothing with them."""

import itertools

import pytest
import torch
from oracles import assert_hides

from cvattn.core import masks

SIZES = [(7, 11), (13, 5), (1, 6), (5, 1), (8, 12)]
WINDOWS = [
    ((3, 4), (0, 0)),
    ((3, 4), (1, 3)),
    ((4, 4), (2, 2)),
    ((5, 20), (2, 9)),
    ((1, 1), (0, 0)),
]
NEIGHBORHOODS = [((3, 5), 1), ((1, 3), (3, 2)), ((3, 1), 2), ((5, 5), 1), ((3, 3), (2, 1))]


def from_loop(height, width, sees):
    """(H*W, H*W) of ``sees((y, x), (y, x))``."""
    grid = list(itertools.product(range(height), range(width)))
    return torch.tensor([[sees(query, key) for key in grid] for query in grid])


def windows_of(size, window, shift):
    """The windows of one axis, walked from the left: what each position belongs to."""
    if window >= size:
        return [0] * size
    found, number, left = [], 0, shift or window
    for _ in range(size):
        if left == 0:
            number, left = number + 1, window
        found.append(number)
        left -= 1
    return found


def nearest(at, size, window, step):
    """The keys of one axis: the window about ``at``, moved inwards until it fits."""
    alike = [key for key in range(size) if key % step == at % step]
    middle = alike.index(at)
    first = middle - window // 2
    while first < 0:
        first += 1
    while first + window > len(alike):
        first -= 1
    return alike[first : first + window]


@pytest.mark.parametrize(("window", "shift"), WINDOWS)
@pytest.mark.parametrize("size", SIZES)
def test_windows(size, window, shift):
    rows, columns = (windows_of(*each) for each in zip(size, window, shift, strict=True))
    expected = from_loop(
        *size, lambda q, k: rows[q[0]] == rows[k[0]] and columns[q[1]] == columns[k[1]]
    )
    assert torch.equal(masks.window_mask_2d(*size, window, shift), expected)


@pytest.mark.parametrize(("window", "dilation"), NEIGHBORHOODS)
@pytest.mark.parametrize("size", SIZES)
def test_neighborhoods(size, window, dilation):
    steps = (dilation, dilation) if isinstance(dilation, int) else dilation
    axes = list(zip(size, window, steps, strict=True))
    if any(side * step > length for length, side, step in axes):
        with pytest.raises(ValueError, match="the map has"):
            masks.neighborhood_mask_2d(*size, window, dilation)
        return
    expected = from_loop(*size, lambda q, k: all(k[i] in nearest(q[i], *axes[i]) for i in range(2)))
    found = masks.neighborhood_mask_2d(*size, window, dilation)
    assert torch.equal(found, expected)
    assert (found.sum(1) == window[0] * window[1]).all()


@pytest.mark.parametrize("size", SIZES)
def test_axes_and_crosses(size):
    columns = masks.axis_mask_2d(*size, 0)
    rows = masks.axis_mask_2d(*size, 1)
    cross = masks.criss_cross_mask_2d(*size)
    assert torch.equal(columns, from_loop(*size, lambda q, k: q[1] == k[1]))
    assert torch.equal(rows, from_loop(*size, lambda q, k: q[0] == k[0]))
    assert torch.equal(cross, from_loop(*size, lambda q, k: q[0] == k[0] or q[1] == k[1]))
    assert torch.equal(masks.window_mask_2d(*size, (1, size[1])), rows)
    assert (cross.sum(1) == sum(size) - 1).all()


@pytest.mark.parametrize(
    ("build", "args"),
    [
        (masks.window_mask_2d, ((3, 4), (1, 3))),
        (masks.neighborhood_mask_2d, ((3, 5), (2, 1))),
        (masks.axis_mask_2d, (0,)),
        (masks.criss_cross_mask_2d, ()),
    ],
)
def test_chosen_rows(build, args):
    whole = assert_hides(build(7, 11, *args))
    rows = torch.tensor([76, 0, 13, 13])
    assert torch.equal(build(7, 11, *args, rows=rows), whole[rows])
    assert build(300, 301, *args, rows=rows).shape == (4, 90_300)  # all of it would be 8 GB
    with pytest.raises(ValueError, match=r"rows must lie in 0\.\.76"):
        build(7, 11, *args, rows=torch.tensor([77]))
    with pytest.raises(ValueError, match="1-D tensor of integers"):
        build(7, 11, *args, rows=torch.tensor([1.0]))


def test_an_axis_is_one_of_two():
    with pytest.raises(ValueError, match="axis=2"):
        masks.axis_mask_2d(3, 4, 2)

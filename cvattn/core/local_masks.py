"""The masks of local attention: what windows, neighbourhoods and axes mean, as the specification.

Attention under these masks (:func:`cvattn.core.attention.reference_attention`) is what the
functions of :mod:`cvattn.core.local` compute. Positions are counted row by row, y * W + x. All of
a mask has H*W x H*W entries; ``rows`` builds chosen query rows alone.
"""

import torch
from torch import Tensor

from cvattn.core.attention.inputs import refuse_if
from cvattn.core.local.inputs import check_neighborhood, check_window


def window_mask_2d(
    height: int,
    width: int,
    window: tuple[int, int],
    shift: tuple[int, int] = (0, 0),
    *,
    rows: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """(H*W or len(rows), H*W), True within the same window of Swin's, cut at the border.

    Args:
        window, shift: as :func:`cvattn.core.local.window_attention` has them.
        rows: which queries, indices y * W + x; None = all.
    """
    check_window(window, shift)
    queries, keys = _positions(height, width, rows, device)
    mask = None
    for at, to, size, side, first in zip(
        queries, keys, (height, width), window, shift, strict=True
    ):
        # The first window has `shift` rows; one window alone is all of the axis.
        start = 0 if side >= size else (side - first) % side
        same = (at + start) // side == (to + start) // side
        mask = same if mask is None else mask & same
    assert mask is not None
    return mask


def neighborhood_mask_2d(
    height: int,
    width: int,
    window: tuple[int, int],
    dilation: int | tuple[int, int] = 1,
    *,
    rows: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """(H*W or len(rows), H*W), True for the kh * kw keys of each query, as NATTEN chooses them.

    Args:
        window, dilation: as :func:`cvattn.core.local.neighborhood_attention` has them.
        rows: which queries, indices y * W + x; None = all.
    """
    steps = check_neighborhood((height, width), window, dilation)
    queries, keys = _positions(height, width, rows, device)
    near = [
        _near(*each) for each in zip(queries, keys, (height, width), window, steps, strict=True)
    ]
    return near[0] & near[1]


def axis_mask_2d(
    height: int,
    width: int,
    axis: int,
    *,
    rows: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """(H*W or len(rows), H*W), True along one axis: 0 = up and down, 1 = left and right."""
    if axis not in (0, 1):
        raise ValueError(f"axis={axis}; expected 0 (the keys of a column) or 1 (those of a row)")
    queries, keys = _positions(height, width, rows, device)
    return queries[1 - axis] == keys[1 - axis]


def criss_cross_mask_2d(
    height: int,
    width: int,
    *,
    rows: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """(H*W or len(rows), H*W), True for the H + W - 1 keys of the query's row and column."""
    queries, keys = _positions(height, width, rows, device)
    return (queries[0] == keys[0]) | (queries[1] == keys[1])


def _near(at: Tensor, to: Tensor, size: int, window: int, step: int) -> Tensor:
    """Along one axis: the same remainder, and one of the window's steps."""
    length = (size - 1 - at % step) // step + 1  # positions of that remainder
    first = torch.minimum((at // step - window // 2).clamp(min=0), length - window)
    steps = to // step - first
    return (at % step == to % step) & (steps >= 0) & (steps < window)


def _positions(
    height: int, width: int, rows: Tensor | None, device: torch.device | None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(y, x) of the queries, (L, 1) each, and of the keys, (H*W,) each."""
    key = torch.arange(height * width, device=device)
    query = key
    if rows is not None:
        if rows.ndim != 1 or rows.is_floating_point() or rows.dtype == torch.bool:
            raise ValueError(
                f"rows must be a 1-D tensor of integers, got shape {tuple(rows.shape)} of "
                f"{rows.dtype}"
            )
        last = height * width - 1
        refuse_if((rows < 0) | (rows > last), f"rows must lie in 0..{last} (y * W + x)", rows)
        query = rows.to(key.device).long()
    query = query[:, None]
    return (query // width, query % width), (key // width, key % width)

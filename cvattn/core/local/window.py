"""Attention within windows."""

from collections.abc import Callable

from torch import Tensor

from cvattn.core.attention.inputs import check_maps
from cvattn.core.local.bands import Band, banded_attention
from cvattn.core.local.inputs import check_window


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: tuple[int, int],
    shift: tuple[int, int] = (0, 0),
    key_mask: Tensor | None = None,
    bias: Callable[[tuple[int, int]], Tensor] | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attention of each position to those of its window: the map is cut into windows.

    Liu et al., "Swin Transformer" (2021), section 3.2. With a shift the first windows of each axis
    have that many rows (columns), as Swin's have after its cyclic shift and mask. Unlike there maps
    need not divide into windows: those at the border are cut, where Swin pads with zeros that
    are attended to. Axial attention (Ho et al., 2019) along the rows is ``window=(1, W)``, along
    the columns ``(H, 1)``. Time and memory are linear in the number of positions.

    The specification is :func:`cvattn.core.attention.reference_attention` under
    :func:`cvattn.core.masks.window_mask_2d`.

    Args:
        query, key: (B, heads, H, W, E).
        value: (B, heads, H, W, Ev); Ev may differ from E.
        window: rows and columns. An axis that is no longer than its window is one window, whatever
            the shift (as in Swin).
        shift: rows and columns, smaller than the window. Swin takes half of the window in each
            second layer.
        key_mask: bool, (B, H, W), True = may be attended to.
        bias: ``bias((rows, columns))`` -> (heads, n, n) for the n = rows * columns positions of a
            window, added to the scores; such as :class:`cvattn.core.RelativeGridBias` of the
            window's grid. Windows at the border ask for their own size.
        scale: factor on the scores; None = 1/sqrt(E).
        dropout_p: probability of dropping a weight, applied whenever it is > 0.

    Returns:
        (B, heads, H, W, Ev). What :func:`cvattn.core.attention.attention` says of rows that see
        nothing, NaN, precision and derivatives holds here.

    Raises:
        ValueError, TypeError: shapes, windows or masks that do not fit.
    """
    check_maps(query, key, value, key_mask)
    check_window(window, shift)
    heads, height, width = query.shape[1:4]

    def terms(row: Band, column: Band) -> tuple[None, Tensor | None]:
        return None, None if bias is None else _bias_of(bias, heads, (row.size, column.size))

    return banded_attention(
        query,
        key,
        value,
        window_bands(height, window[0], shift[0]),
        window_bands(width, window[1], shift[1]),
        terms,
        key_mask=key_mask,
        scale=scale,
        dropout_p=dropout_p,
    )


def window_bands(size: int, window: int, shift: int) -> list[Band]:
    """The windows of one axis: a part of one, whole ones, a part of one."""
    if window >= size:
        return [Band(0, 1, size, 0, size)]
    whole = (size - shift) // window
    first, last = shift, shift + whole * window
    found = [(0, 1, first), (first, whole, window), (last, 1, size - last)]
    return [Band(at, tiles, side, at, side) for at, tiles, side in found if tiles * side > 0]


def _bias_of(
    bias: Callable[[tuple[int, int]], Tensor], heads: int, grid: tuple[int, int]
) -> Tensor:
    found = bias(grid)
    wanted = (heads, grid[0] * grid[1], grid[0] * grid[1])
    if tuple(found.shape) != wanted:
        raise ValueError(
            f"bias({grid}) has shape {tuple(found.shape)}; expected (heads, n, n) = {wanted} for "
            "the n positions of a window"
        )
    return found

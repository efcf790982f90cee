"""What local attention accepts: windows and their steps, checked once."""


def check_window(window: tuple[int, int], shift: tuple[int, int] = (0, 0)) -> None:
    """Raise ValueError unless a window has a size, and a shift lies within it."""
    _check_pair("window", window, 1)
    _check_pair("shift", shift, 0)
    if shift[0] >= window[0] or shift[1] >= window[1]:
        raise ValueError(
            f"shift={shift} must be smaller than window={window}, on each axis: a shift by whole "
            "windows is none"
        )


def check_neighborhood(
    grid: tuple[int, int] | None, window: tuple[int, int], dilation: int | tuple[int, int]
) -> tuple[int, int]:
    """The dilation as two; ValueError unless each position of the grid has such a window.

    Of a grid that is not known yet (None) nothing is asked.
    """
    steps = (dilation, dilation) if isinstance(dilation, int) else dilation
    _check_pair("window", window, 1)
    _check_pair("dilation", steps, 1)
    if window[0] % 2 == 0 or window[1] % 2 == 0:
        raise ValueError(f"window={window} must be odd on each axis, so that it has a centre")
    sizes = window if grid is None else grid
    for name, size, side, step in zip(("height", "width"), sizes, window, steps, strict=True):
        if grid is not None and side * step > size:
            raise ValueError(
                f"window={window} with dilation={steps} needs a {name} of at least {side * step}, "
                f"the map has {size}. Take a window of at most {_largest_odd(size // step)} there, "
                "a smaller dilation, or attention over all of the map."
            )
    return steps


def _check_pair(name: str, pair: tuple[int, int], least: int) -> None:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError(f"{name}={pair!r}; expected two integers, (rows, columns)")
    if any(isinstance(x, bool) or not isinstance(x, int) or x < least for x in pair):
        raise ValueError(f"{name}={pair!r}; expected two integers of at least {least}")


def _largest_odd(size: int) -> int:
    return max(0, size - 1 + size % 2)

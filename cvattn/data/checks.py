"""Errors in data, and the checks of values that arrive from a configuration."""

import difflib
import math
from collections.abc import Sequence


class DataError(ValueError):
    """Data that is missing, damaged or not what it claims to be. The text names the file."""


def check_int(name: str, value: object, *, minimum: int) -> int:
    """``value`` if it is a whole number >= ``minimum``; TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r} ({type(value).__name__})")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return value


def check_number(name: str, value: object, *, minimum: float, maximum: float) -> float:
    """``value`` as a float if ``minimum <= value <= maximum``; TypeError or ValueError if not."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    if not (math.isfinite(value) and minimum <= value <= maximum):
        raise ValueError(f"{name} must lie in {minimum:g}..{maximum:g}, got {value!r}")
    return float(value)


def check_choice(name: str, value: object, options: Sequence[str]) -> str:
    """``value`` if it is one of ``options``; the error names the nearest one."""
    if isinstance(value, str) and value in options:
        return value
    near = difflib.get_close_matches(str(value), options, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, options))}{hint}")

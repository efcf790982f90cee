"""Means over seeds and how sure they are: 95 % intervals, Student's t."""

import statistics
from collections.abc import Sequence


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean and half the width of its 95 % interval; of a single value that is infinite."""
    if len(values) < 2:
        return statistics.mean(values), float("inf")
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), float(half)


def mean_text(values: Sequence[float], sign: str = "", digits: int = 2) -> str:
    """The mean and, of two values or more, its interval: "0.12 (-0.02 to 0.26)".

    Args:
        values: one at least.
        sign: "+" for differences, which have one.
        digits: behind the point.
    """
    middle, half = mean_interval(values)
    text = f"{middle:{sign}.{digits}f}"
    ends = f"{middle - half:{sign}.{digits}f} to {middle + half:{sign}.{digits}f}"
    return f"{text} ({ends})" if len(values) > 1 else text

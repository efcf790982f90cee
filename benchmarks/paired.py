"""Statistics of rounds: medians, quartiles, and the ratio of two methods timed in turn."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Median(NamedTuple):
    """Median of one value a round, and its 95 % interval."""

    median: float
    low: float
    high: float


def paired_ratio(subject: Sequence[float], other: Sequence[float]) -> Median:
    """Ratio subject : other of times taken in the same rounds.

    Each round gives one ratio, so that what slows the machine for a while slows both sides.
    """
    return _median([a / b for a, b in _rounds(subject, other)])


def paired_difference(subject: Sequence[float], other: Sequence[float]) -> Median:
    """Difference subject - other of times taken in the same rounds."""
    return _median([a - b for a, b in _rounds(subject, other)])


def _rounds(subject: Sequence[float], other: Sequence[float]) -> list[tuple[float, float]]:
    if len(subject) != len(other) or not subject:
        raise ValueError(f"{len(subject)} and {len(other)} rounds; expected equally many, not 0")
    return list(zip(subject, other, strict=True))


def _median(values: list[float]) -> Median:
    """The interval lies between two order statistics and assumes nothing about the distribution.

    The k-th smallest and k-th largest hold the true median unless fewer than k of n fall on one
    side of it, which has the probability of a binomial tail. Below 6 rounds no pair reaches 95 %,
    and the interval is the whole range.
    """
    values = sorted(values)
    n = len(values)
    k = 1
    while 1 - 2 * _tail(n, k) >= 0.95:
        k += 1
    k = max(1, k - 1)
    return Median(statistics.median(values), values[k - 1], values[n - k])


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def fitted_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """p of ``value = a * size**p``, by least squares on the logarithms."""
    x, y = [math.log(s) for s in sizes], [math.log(v) for v in values]
    return statistics.linear_regression(x, y).slope


def _tail(n: int, k: int) -> float:
    """P(fewer than k of n fair coins show heads)."""
    return sum(math.comb(n, i) for i in range(k)) / 2**n

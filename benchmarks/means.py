"""Means over seeds and how sure they are."""

import statistics
from collections.abc import Sequence

from rich.table import Table


def means_table(rows: list[dict[str, str]]) -> Table:
    """A line for each run: means over its seeds, with the 95 % interval (Student's t)."""
    table = Table(title="mean over seeds (95 % interval)", title_justify="left")
    for column in ("run", "seeds", "test", "test, views", "validation", "minutes", "PFLOP"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for run in dict.fromkeys(row["run"] for row in rows):
        mine = [row for row in rows if row["run"] == run]
        honest = [row for row in mine if row["trained_on_val"] != "True"]
        table.add_row(
            run,
            str(len(mine)),
            *(_mean(mine, key) for key in ("test_accuracy", "test_accuracy_views")),
            _mean(honest, "val_accuracy"),
            f"{statistics.mean(float(row['minutes']) for row in mine):.1f}",
            f"{statistics.mean(float(row['pflop']) for row in mine):.3f}",
        )
    return table


def _mean(rows: list[dict[str, str]], key: str) -> str:
    values = [100 * float(row[key]) for row in rows if row[key]]
    return mean_text(values) if values else ""


def mean_text(values: Sequence[float], sign: str = "") -> str:
    """The mean and, of two values or more, its 95 % interval (Student's t)."""
    middle, half = mean_interval(values)
    text = f"{middle:{sign}.2f}"
    ends = f"{middle - half:{sign}.2f} to {middle + half:{sign}.2f}"
    return f"{text} ({ends})" if len(values) > 1 else text


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean and half the width of its 95 % interval; of a single value that is infinite."""
    if len(values) < 2:
        return statistics.mean(values), float("inf")
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), float(half)

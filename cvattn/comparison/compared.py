"""Runs against the first one: differences of equal seeds, and what they come to."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cvattn.comparison.intervals import mean_interval
from cvattn.comparison.jobs import Job
from cvattn.comparison.metrics import Metric, metrics_of

Row = Mapping[str, str]
# Two differences of accuracies are soon equal by chance, and then their interval has no width.
_TOO_FEW = ("no seed in common", "1 seed, no interval", "2 seeds, too few for a verdict")
_FEWEST = len(_TOO_FEW)


@dataclass(frozen=True)
class Arm:
    """A run in one metric.

    Attributes:
        name: of it.
        values: by seed, in the metric's unit.
        differences: from the first run, of the seeds that both have; of itself none.
    """

    name: str
    values: Mapping[int, float]
    differences: Mapping[int, float]

    def verdict(self, metric: Metric) -> str:
        """ "better", "worse", "no difference seen", or that there are too few seeds."""
        count = len(self.differences)
        if count < _FEWEST:
            return _TOO_FEW[count]
        middle, half = mean_interval(list(self.differences.values()))
        if abs(middle) <= half:
            return "no difference seen"
        return "better" if (middle > 0) == (metric.mode == "max") else "worse"


@dataclass(frozen=True)
class Comparison:
    """Finished runs on the same data.

    Attributes:
        first: the run that the others are compared with.
        rows: of all of them, run by run.
    """

    first: str
    rows: Sequence[Row]

    @property
    def data(self) -> str:
        """Its label, which says so if the pixels are not the official ones."""
        return self.rows[0]["data"]

    @property
    def metrics(self) -> list[Metric]:
        return metrics_of(self.rows)

    def arms(self, metric: Metric) -> list[Arm]:
        """Every run that has the metric."""
        values: dict[str, dict[int, float]] = {row["run"]: {} for row in self.rows}
        for row in self.rows:
            value = metric.value(row)
            if value is not None:
                values[row["run"]][int(row["seed"])] = value
        base = values.get(self.first, {})
        return [
            Arm(name, of, {s: of[s] - base[s] for s in of if s in base and name != self.first})
            for name, of in values.items()
            if of
        ]

    def means(self, key: str) -> dict[str, float]:
        """Of a column that every row has, for each run."""
        values: dict[str, list[float]] = {}
        for row in self.rows:
            values.setdefault(row["run"], []).append(float(row[key]))
        return {run: statistics.mean(found) for run, found in values.items()}


def comparisons(jobs: Sequence[Job], rows: Sequence[Row]) -> tuple[list[Comparison], int]:
    """The rows of these runs with whichever seeds, apart by data, the first run first.

    Args:
        jobs: the first one's run is what the others are compared with.
        rows: of the file; it may have others.

    Returns:
        The comparisons, and how many rows are left out since they are of a run of the same name and
        another command.
    """
    runs = {job.run: job.overrides for job in jobs}
    named = [row for row in rows if row["run"] in runs]
    mine = [
        row
        for row in named
        if row["command"] == Job(row["run"], runs[row["run"]], int(row["seed"])).command
    ]
    order = list(runs)
    mine.sort(key=lambda row: (order.index(row["run"]), int(row["seed"])))
    parts: dict[str, list[Row]] = {}
    for row in mine:
        parts.setdefault(row["data"], []).append(row)
    return [Comparison(order[0], part) for part in parts.values()], len(named) - len(mine)

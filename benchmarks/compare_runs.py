"""The runs of a queue against its first one: means, differences of equal seeds, a picture.

    python benchmarks/compare_runs.py results/attention_ablation.csv

Prints a table and writes the picture beside the file. Intervals are 95 % (Student's t).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from means import mean_interval, mean_text
from queue_rows import read_rows
from rich.console import Console
from rich.table import Table

METRICS = {
    "test_accuracy_views": "test accuracy with views",
    "test_accuracy": "test accuracy",
    "val_accuracy": "validation accuracy",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="of run_queue.py")
    path = parser.parse_args().file
    console = Console(highlight=False, soft_wrap=True)
    rows = read_rows(path)
    if not rows:
        console.print(f"{path} has no rows; python benchmarks/run_queue.py makes them")
        return 2
    column = metric(rows)
    name = METRICS[column]
    runs = by_seed(rows, column)
    console.print(table(runs, {row["run"]: float(row["pflop"]) for row in rows}, title=name))
    picture = path.with_name(f"{path.stem}_compared.png")  # the queue's own has the curves
    draw(runs, picture, label=f"{name} on {rows[0]['data']}")
    console.print(f"picture: {picture.name}")
    return 0


def metric(rows: Sequence[dict[str, str]]) -> str:
    """The column that all rows are compared by: the first that each of them has."""
    return next(column for column in METRICS if all(row[column] for row in rows))


def by_seed(rows: Sequence[dict[str, str]], column: str) -> dict[str, dict[int, float]]:
    """What the column says of each run and seed, in percent."""
    runs: dict[str, dict[int, float]] = {}
    for row in rows:
        runs.setdefault(row["run"], {})[int(row["seed"])] = 100 * float(row[column])
    return runs


def differences(runs: dict[str, dict[int, float]], run: str) -> list[float]:
    """Of ``run`` from the first one, for each seed that both have."""
    first = next(iter(runs.values()))
    return [runs[run][seed] - first[seed] for seed in sorted(runs[run]) if seed in first]


def table(runs: dict[str, dict[int, float]], pflop: dict[str, float], *, title: str) -> Table:
    first, *_ = runs
    shown = Table(title=f"{title}, %", title_justify="left")
    shown.add_column("run", min_width=max(map(len, runs)))
    for name in ("seeds", "mean (95 %)", f"from {first} (95 %)", "PFLOP"):
        shown.add_column(name, justify="right")
    for run, accuracies in runs.items():
        apart = differences(runs, run) if run != first else []
        shown.add_row(
            *(run, str(len(accuracies)), mean_text(list(accuracies.values()))),
            mean_text(apart, "+") if apart else "",
            f"{pflop[run]:.4f}",
        )
    return shown


def draw(runs: dict[str, dict[int, float]], path: Path, *, label: str) -> None:
    """A line for each run: its seeds as dots, its mean, and of 3 seeds or more the interval.

    That of 2 seeds is so wide that it would hide all others.
    """
    figure = Figure(figsize=(7.0, 0.9 + 0.42 * len(runs)), layout="constrained")
    axes = figure.subplots()
    for place, accuracies in enumerate(runs.values()):
        values = list(accuracies.values())
        mean, half = mean_interval(values)
        axes.plot(values, [place] * len(values), "o", color="0.7", markersize=4)
        if len(values) > 1:
            xerr = half if len(values) > 2 else 0.0
            axes.errorbar(mean, place, xerr=xerr, fmt="D", color="C0", capsize=4, markersize=5)
    axes.set_yticks(range(len(runs)), [name.replace("_", " ") for name in runs])
    axes.invert_yaxis()
    axes.set_xlabel(f"{label}, %\nseeds, mean and (of 3 seeds or more) its 95 % interval")
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    raise SystemExit(main())

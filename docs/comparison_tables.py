"""The tables of comparisons on the pages, from files of ``cvattn compare`` in results/."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cvattn.comparison.compared import Comparison
from cvattn.comparison.intervals import mean_text

Row = Mapping[str, str]
# Columns of what judge_runs.py writes: how they are called, how they are scaled, digits.
_JUDGED = {
    "fd_lite0": ("FD-lite0", 1.0, 1),
    "accuracy": ("taken for their class, %", 100.0, 1),
}


def comparison_tables(results: Path) -> Iterator[tuple[str, str]]:
    """Name and Markdown of each."""
    for name in ("flow_attention", "flow_attention_cifar10", "segmentation_heads", "transfer"):
        yield name, comparison_table(_rows(results / f"{name}.csv"))
    yield "flow_attention_quality", quality_table(_rows(results / "flow_attention_quality.csv"))


def comparison_table(rows: Sequence[Row]) -> str:
    """Each metric's means, and how far they are from the first run's, seed by seed."""
    first = rows[0]["run"]
    comparison = Comparison(first, rows)
    metrics = comparison.metrics
    heads = [f"{m.name}{', ' + m.unit if m.unit else ''} | from {first}" for m in metrics]
    parts = [f"| run | {' | '.join(heads)} | million MACs | parameters | PFLOP |"]
    parts.append("|---" * (2 * len(metrics) + 4) + "|")
    costs = [comparison.means(key) for key in ("macs_per_sample", "parameters", "pflop")]
    for run in dict.fromkeys(row["run"] for row in rows):
        cells = []
        for metric in metrics:
            arm = next(arm for arm in comparison.arms(metric) if arm.name == run)
            digits = 4 if not metric.unit else metric.digits
            cells.append(mean_text(list(arm.values.values()), digits=digits))
            apart = list(arm.differences.values())
            cells.append(mean_text(apart, "+", digits) if apart else "")
        macs, parameters, pflop = (cost[run] for cost in costs)
        cells += [f"{macs / 1e6:.1f}", f"{parameters:,.0f}", f"{pflop:.4f}"]
        parts.append(f"| {run} | {' | '.join(cells)} |")
    return "\n".join([*parts, "", _made_with(rows), ""])


def quality_table(rows: Sequence[Row]) -> str:
    """What the networks make, beside the floor."""
    first = rows[0]["run"]
    titles = [f"{title} | from {first}" for title, *_ in _JUDGED.values()]
    parts = [f"| run | {' | '.join(titles)} |", "|---" * (2 * len(_JUDGED) + 1) + "|"]
    for run in dict.fromkeys(row["run"] for row in rows):
        cells = []
        for key, (_, scale, digits) in _JUDGED.items():
            values, base = (
                {row["seed"]: scale * float(row[key]) for row in rows if row["run"] == of}
                for of in (run, first)
            )
            cells.append(mean_text(list(values.values()), digits=digits))
            apart = [values[seed] - base[seed] for seed in values if seed in base and run != first]
            cells.append(mean_text(apart, "+", digits) if apart else "")
        parts.append(f"| {run} | {' | '.join(cells)} |")
    one = rows[0]
    copies = sum(row["copies"] == "True" for row in rows)
    floor, known = float(one["fd_lite0_floor"]), float(one["accuracy_of_test_images"])
    said = (
        f"{int(one['count']):,} images of each run ({one['way']}) against as many test images of "
        f"{one['data']}, mean of {one['draws']} draws; training images have FD-lite0 {floor:.1f}. "
        f"The classifier (`{one['classifier']}`) is right on {known:.1%} of the test images. "
        f"Copies of training images are suspected in {copies} of {len(rows)} runs."
    )
    return "\n".join([*parts, "", said, ""])


def _made_with(rows: Sequence[Row]) -> str:
    seeds = ", ".join(sorted({row["seed"] for row in rows}, key=int))
    first = rows[0]
    facts = {key: list(dict.fromkeys(row[key] for row in rows)) for key in ("cpu", "precision")}
    commits = dict.fromkeys(word[:7] for row in rows for word in row["commit"].split())
    command = first["command"].removesuffix(f" seed={first['seed']}")
    return (
        f"On {first['data']}. Means over seeds {seeds} with their 95 % interval (Student's t); "
        f"differences seed by seed. The first run: `{command}`. {', '.join(facts['cpu'])}, "
        f"{', '.join(facts['precision'])}, torch {first['torch']}, commit {', '.join(commits)}."
    )


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))

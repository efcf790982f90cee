"""The contract of a recipe, for the top of its file, from its runs in a queue's results.

    python benchmarks/contract.py results/cifar10.csv sagan

The interval is where 95 % of single runs fall: mean -+ t s sqrt(1 + 1/n), Student's t.
"""

import argparse
import statistics
from pathlib import Path

from scipy.stats import t

from cvattn.comparison.rows import read_rows
from cvattn.harness.reporting.summary import is_loss


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="of cvattn compare")
    parser.add_argument("run", help="name of the runs in it")
    args = parser.parse_args()
    rows = [row for row in read_rows(args.file) if row["run"] == args.run]
    if len(rows) < 3:
        print(f"{args.file} has {len(rows)} runs of {args.run}; an interval needs 3 or more")
        return 2
    print("\n".join(contract(rows)))
    return 0


def contract(rows: list[dict[str, str]]) -> list[str]:
    """The lines of the comment."""
    metric = next(
        name
        for name in ("accuracy_views", "accuracy", "mean_iou", "loss", "swd")
        if all(row.get(f"test_{name}") for row in rows)
    )
    scale, digits, most = (1.0, 4, float("inf")) if is_loss(metric) else (100.0, 2, 100.0)
    values = [scale * float(row[f"test_{metric}"]) for row in rows]
    low, high = prediction_interval(values)
    first = rows[0]
    lines = {
        "command": first["command"].removesuffix(f" seed={first['seed']}"),
        "data": first["data"],
        "metric": metric,
        "mean": f"{statistics.mean(values):.{digits}f}",
        "expect": f"[{max(0.0, low):.{digits}f}, {min(most, high):.{digits}f}]",
        "seeds": f"[{', '.join(row['seed'] for row in rows)}]",
        "pflop": f"{float(first['pflop']):.4g}",
        "minutes": f"{statistics.mean(float(row['minutes']) for row in rows):.1f}",
        "machine": f"{_cores(first)}, {first['cpu']}, {first['precision']}",
        "commit": f'"{first["commit"]}"',  # digits alone would be a number
    }
    name = first["data"].partition(" ")[0]
    return [f"#   {name}:", *(f"#     {key}: {value}" for key, value in lines.items())]


def _cores(row: dict[str, str]) -> str:
    """Those of the machine; threads are said where a run had fewer."""
    threads, cores = row.get("threads") or row["cores"], row["cores"]
    return f"{cores} cores" if threads == cores else f"{threads} of {cores} cores"


def prediction_interval(values: list[float]) -> tuple[float, float]:
    """Where one more value falls with 95 %, if they are normal and independent."""
    n, middle = len(values), statistics.mean(values)
    half = t.ppf(0.975, n - 1) * statistics.stdev(values) * (1 + 1 / n) ** 0.5
    return float(middle - half), float(middle + half)


if __name__ == "__main__":
    raise SystemExit(main())

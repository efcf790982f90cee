"""Two trainings beside each other on one machine: what they do together, of what one does alone.

    CVATTN_DATA=... python benchmarks/at_once.py          rows in results/at_once_<machine>.csv

Each is a ``train.py`` of 20 steps on all cores, which is what two terminals do. Threads of OpenMP
that wait for each other spin, and two processes then take the cores from each other for nothing;
``train.py`` has them sleep after 1,000 looks (``GOMP_SPINCOUNT``), the library's own value is
300,000. Alone a run is timed with both values, too; together also with half of the cores for each,
as ``cvattn compare --at-once 2`` has it. Rounds take the cases in turn; the ratio is images per
second of both together : of one alone with the library's own value, of each round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import machine
from paired import Median, paired_ratio
from rich.console import Console
from rows import write_rows

from cvattn.comparison import queue

RUN = (
    *("data=cifar10", "recipe.epochs=1", "trainer.limit_train_batches=20"),
    *("trainer.limit_val_batches=1", "trainer.limit_test_batches=1", "callbacks.attention=null"),
)
LIBRARY = "300,000 looks"
# How runs wait, and how many are timed together.
CASES = (("train.py", 1), ("train.py", 2), (LIBRARY, 1), (LIBRARY, 2), ("share of the cores", 2))
COLUMNS = (
    *("model", "waiting", "runs", "figure", "median", "low", "high", "target", "met", "rounds"),
    *("torch", "commit", "cpu", "bf16_instructions", "date"),
)
TARGET = 0.85


def environment(waiting: str, runs: int) -> dict[str, str]:
    """Of each of so many runs."""
    given = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_NUM_THREADS")}
    if waiting == LIBRARY:
        return given | {"GOMP_SPINCOUNT": "300000"}
    if waiting == "train.py":
        return given
    return dict(queue.environment(runs, given))


def images_per_second(model: str, waiting: str, runs: int) -> float:
    """Of as many runs together."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / str(number) for number in range(runs)]
        command = [sys.executable, str(machine.ROOT / "train.py"), f"model={model}", *RUN]
        processes = [
            subprocess.Popen(
                [*command, f"hydra.run.dir={folder}"],
                env=environment(waiting, runs),
                cwd=scratch,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for folder in folders
        ]
        for process in processes:
            output, _ = process.communicate()
            if process.returncode:
                raise SystemExit(output)
        summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    return sum(summary["images_per_second"] for summary in summaries)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["sagan", "vit"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="the file of rows")
    args = parser.parse_args()
    console, facts = Console(highlight=False), machine.facts()
    rows: list[dict[str, object]] = []
    for model in args.models:
        found: dict[tuple[str, int], list[float]] = {}
        for case in CASES * args.rounds:
            found.setdefault(case, []).append(images_per_second(model, *case))
        alone = found[LIBRARY, 1]
        for (name, runs), rates in found.items():
            shown = {
                "images/s": Median(statistics.median(rates), min(rates), max(rates)),
                "of one alone": paired_ratio(rates, alone),
            }
            for figure, (middle, low, high) in shown.items():
                row = {"model": model, "waiting": name, "runs": runs, "figure": figure}
                row |= {"median": f"{middle:.4g}", "low": f"{low:.4g}", "high": f"{high:.4g}"}
                if figure == "of one alone" and runs == 2 and name != LIBRARY:
                    row |= {"target": TARGET, "met": "yes" if low >= TARGET else "no"}
                console.print(*(f"{key} {value}" for key, value in row.items()), sep=", ")
                rows.append(row | {"rounds": args.rounds} | facts)
    name = f"at_once_{machine.slug(facts['cpu'])}.csv"
    write_rows(args.output or machine.ROOT / "results" / name, COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a multirun found, in one table."""

import csv
import io
import math
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.table import Table

from cvattn.harness.config.paths import short
from cvattn.harness.reporting.console import plain_console
from cvattn.harness.reporting.summary import read_summary, score_of
from cvattn.system.files import write_text

ERROR = "error.txt"  # beside what a failed job left


class SweepTable(Callback):
    """Prints the jobs, the best first by what their task is judged by, and leaves ``sweep.csv``.

    Nothing is said of the test set: a sweep chooses, and what is chosen by a figure cannot be
    judged by it.

    Jobs that failed are listed below it, and the command ends with 1.
    """

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        show_table(folder)
        if _failed(folder):
            raise SystemExit(1)


def show_table(folder: Path) -> None:
    """Print what the jobs in ``folder`` have come to, and leave it there in ``sweep.csv``."""
    console = plain_console()
    rows = sweep_rows(folder)
    if rows:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        write_text(folder / "sweep.csv", text.getvalue())
        console.print(_table(rows))
        where = f"{short(folder)}/sweep.csv"
        console.print(f"The table is in {where}, each run beside it.", soft_wrap=True)
    for path in _failed(folder):
        console.print(f"{path.parent.name} failed:", style="bold red", end=" ")
        console.print(path.read_text().partition("\n")[0], soft_wrap=True)


def _failed(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*/{ERROR}"))


def _table(rows: list[dict[str, str]]) -> Table:
    table = Table(title="finished runs, best first", title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="right", overflow="fold", no_wrap=name == "run")
    for row in rows:
        table.add_row(*map(_readable, row.values()))
    return table


def sweep_rows(folder: Path) -> list[dict[str, str]]:
    """A row for each finished run below ``folder``: what it changed, and its figures."""
    found = []
    for path in folder.glob("*/summary.json"):
        summary = read_summary(path)
        if summary is None:
            continue  # cut short: the run is not finished
        changed = dict(text.partition("=")[::2] for text in summary["overrides"])
        found.append((path.parent.name, changed, summary))
    every = [key for _, changed, _ in found for key in changed]
    swept = [
        key
        for key in dict.fromkeys(every)
        if len({changed.get(key) for _, changed, _ in found}) > 1
    ]
    found.sort(key=lambda one: _score(one[2]), reverse=True)
    return [
        {
            "run": name,
            **{key: changed.get(key, "") for key in swept},
            "validation": _validation(summary),
            "minutes": f"{summary['minutes']:.1f}",
            "PFLOP": f"{summary['pflop']:.4f}",
        }
        for name, changed, summary in found
    ]


def _score(summary: dict[str, Any]) -> float:
    """More is better; least of a run that was not validated."""
    score = score_of(summary)
    return -math.inf if math.isnan(score) else score


def _validation(summary: dict[str, Any]) -> str:
    best = summary.get("criterion", {}).get("best")
    return "" if best is None else f"{best:.4f}"


def _readable(value: str) -> str:
    """A drawn learning rate has 17 digits in the file and 4 on the screen."""
    try:
        return f"{float(value):.4g}" if len(value) > 8 else value
    except ValueError:
        return value

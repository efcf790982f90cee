"""What a multirun found, in one table."""

import csv
import json
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from cvattn.harness.paths import short


class SweepTable(Callback):
    """Prints the jobs, best validation accuracy first, and leaves them in ``sweep.csv``.

    Nothing is said of the test set: a sweep chooses, and what is chosen by a figure cannot be
    judged by it.
    """

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        rows = sweep_rows(folder)
        if not rows:
            return
        with (folder / "sweep.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        table = Table(title=f"{len(rows)} runs", title_justify="left")
        for name in rows[0]:
            table.add_column(name, justify="right", overflow="fold", no_wrap=name == "run")
        for row in rows:
            table.add_row(*map(_readable, row.values()))
        console = Console(highlight=False)
        console.print(table)
        console.print(f"The table is in {short(folder)}/sweep.csv, each run in its folder beside.")


def sweep_rows(folder: Path) -> list[dict[str, str]]:
    """A row for each finished run below ``folder``: what it changed, and its figures."""
    found = []
    for path in folder.glob("*/summary.json"):
        summary = json.loads(path.read_text())
        changed = dict(text.partition("=")[::2] for text in summary["overrides"])
        found.append((path.parent.name, changed, summary))
    every = [key for _, changed, _ in found for key in changed]
    swept = [
        key
        for key in dict.fromkeys(every)
        if len({changed.get(key) for _, changed, _ in found}) > 1
    ]
    found.sort(key=lambda one: one[2]["best_val_accuracy"], reverse=True)
    return [
        {
            "run": name,
            **{key: changed.get(key, "") for key in swept},
            "validation": f"{summary['best_val_accuracy']:.4f}",
            "minutes": f"{summary['minutes']:.1f}",
            "PFLOP": f"{summary['pflop']:.4f}",
        }
        for name, changed, summary in found
    ]


def _readable(value: str) -> str:
    """A drawn learning rate has 17 digits in the file and 4 on the screen."""
    try:
        return f"{float(value):.4g}" if len(value) > 8 else value
    except ValueError:
        return value

"""``metrics.csv``: one row an epoch, kept and continued when a run is."""

import csv
import io
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from cvattn.system.files import CannotWrite, make_folder, write_text


class CSVLog(Logger):
    """Writes the metrics of each epoch as a row, with every metric ever seen as a column.

    Lightning's own CSVLogger deletes the file of a run that is continued. Here rows are keyed by
    epoch: those that a continued run trains again take the place of the old ones. A file that
    cannot be written does not end a training: it is said once, and tried again with the next row.

    Args:
        path: the file; read if it exists.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)
        self.rows: dict[int, dict[str, Any]] = read_metrics(self.path)
        self._complained = False
        self._waiting: dict[str, float] = {}

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing: the configuration is in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = dict(metrics)
        epoch = values.pop("epoch", None)
        if epoch is None:
            # Of a callback that logs by itself, such as LearningRateMonitor: the last values of an
            # epoch go into its row.
            self._waiting.update(values)
            return
        if not values or any(key.startswith("test/") for key in values):
            return
        row = self.rows.setdefault(int(epoch), {"epoch": int(epoch)})
        row.update({"step": step, **self._waiting, **values})
        self._waiting.clear()

    def column(self, metric: str) -> list[float]:
        """Its values, epoch by epoch, of those that have one."""
        return [self.rows[e][metric] for e in sorted(self.rows) if metric in self.rows[e]]

    def forget_from(self, epoch: int) -> None:
        """Drop the rows of this epoch and later ones, which are about to be trained again."""
        self.rows = {e: row for e, row in self.rows.items() if e < epoch}

    @rank_zero_only
    def save(self) -> None:
        if not self.rows:
            return
        columns = ["epoch", "step"]
        columns += sorted({key for row in self.rows.values() for key in row} - set(columns))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(self.rows[epoch] for epoch in sorted(self.rows))
        try:
            make_folder(self.path.parent)
            write_text(self.path, text.getvalue())
        except CannotWrite as error:
            if not self._complained:  # the rows are in the checkpoints, and in the next attempt
                print(f"{error} Training goes on.", file=sys.stderr)
            self._complained = True

    def finalize(self, status: str) -> None:
        self.save()


def read_metrics(path: Path) -> dict[int, dict[str, Any]]:
    """{epoch: {column: number}} of a metrics.csv; empty if there is none."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        rows = [{k: _number(k, v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return {int(row["epoch"]): row for row in rows}


def _number(column: str, text: str) -> float:
    return int(float(text)) if column in ("epoch", "step") else float(text)

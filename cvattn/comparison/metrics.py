"""What runs are compared by: what their task is judged by, and every metric of the test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cvattn.harness.reporting.summary import is_loss

_WORDS = {
    "val": "validation",
    "accuracy_views": "accuracy with views",
    "accuracy_macro": "macro accuracy",
    "cer": "character error rate",
    "f1_macro": "F1 (macro)",
    "mean_iou": "mean IoU",
    "swd": "SWD",
}


@dataclass(frozen=True)
class Metric:
    """A column of the rows, as it is read and shown.

    Attributes:
        column: "val_loss", say.
        mode: which values are better: "max" or "min".
    """

    column: str
    mode: Literal["max", "min"]

    @property
    def name(self) -> str:
        """In words: "test accuracy with views"."""
        stage, _, leaf = self.column.partition("_")
        return f"{_WORDS.get(stage, stage)} {_WORDS.get(leaf, leaf.replace('_', ' '))}"

    @property
    def unit(self) -> str:
        """ "%" for shares of 1, "" for losses, which are shown as they are."""
        return "" if is_loss(self.column.partition("_")[2]) else "%"

    @property
    def digits(self) -> int:
        return 2 if self.unit else 5

    def value(self, row: Mapping[str, str]) -> float | None:
        """Of a row, in the metric's unit; None where there is none or it means nothing."""
        if not row.get(self.column):
            return None
        if self.column.startswith("val_") and row["trained_on_val"] == "True":
            return None  # of images that it was trained on
        return float(row[self.column]) * (100 if self.unit else 1)


def metrics_of(rows: Sequence[Mapping[str, str]]) -> list[Metric]:
    """The task's criterion on the validation, then all of the test that any row has."""
    judged = dict.fromkeys(map(_criterion, rows))
    every = dict.fromkeys(column for row in rows for column in row if column.startswith("test_"))
    tested = sorted(every, key=lambda column: is_loss(column.partition("_")[2]))  # those at the end
    modes = {column.partition("_")[2]: mode for column, mode in judged}
    found = [Metric(column, mode) for column, mode in judged]
    found += [Metric(column, _mode(column.partition("_")[2], modes)) for column in tested]
    return [metric for metric in found if any(metric.value(row) is not None for row in rows)]


def _criterion(row: Mapping[str, str]) -> tuple[str, Literal["max", "min"]]:
    """Column and direction; of rows from before it was written down, by what they have."""
    if row.get("criterion"):
        mode: Literal["max", "min"] = "max" if row["mode"] == "max" else "min"
        return row["criterion"].replace("/", "_"), mode
    return ("val_accuracy", "max") if row.get("val_accuracy") else ("val_loss", "min")


def _mode(leaf: str, told: Mapping[str, Literal["max", "min"]]) -> Literal["max", "min"]:
    if leaf in told:
        return told[leaf]
    return "min" if is_loss(leaf) or leaf == "cer" else "max"

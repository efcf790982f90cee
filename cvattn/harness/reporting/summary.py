"""``summary.json``: what came out of a run. A run is done when it is there and whole."""

import json
import math
from pathlib import Path
from typing import Any

from cvattn.system.files import write_text
from cvattn.tasks import Criterion


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Write it whole; numbers that JSON does not have (NaN, infinity) become null."""
    write_text(path, json.dumps(_plain(summary), indent=2, sort_keys=True, allow_nan=False) + "\n")


def score_of(summary: dict[str, Any]) -> float:
    """What a search maximises; NaN of a run that was not validated."""
    told = summary.get("criterion", {})
    if told.get("best") is None:
        return math.nan
    return Criterion(told["metric"], told["mode"]).score(told["best"])


def figure(metric: str, value: float | None, digits: int = 2) -> str:
    """A metric as people read it: shares in percent, losses as they are, "-" for none."""
    if value is None:
        return "-"
    return f"{value:.4f}" if is_loss(metric.rpartition("/")[2]) else f"{value:.{digits}%}"


def is_loss(name: str) -> bool:
    """Whether a metric of that name (without its stage) is a loss or distance: else a share."""
    return name.startswith("loss") or name == "swd"


def read_summary(path: Path) -> dict[str, Any] | None:
    """The summary; None if there is none or it is cut short: the run was not finished."""
    try:
        summary = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return summary if isinstance(summary, dict) else None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

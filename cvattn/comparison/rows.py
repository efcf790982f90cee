"""What is written down of a finished run, and the files that hold it."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from cvattn.comparison.jobs import Job
from cvattn.harness.reporting.csv_log import read_metrics
from cvattn.harness.reporting.summary import read_summary
from cvattn.system.files import make_folder, write_text
from cvattn.system.machine import bf16_instructions, usable_cores

# Those that every file has; further metrics of a task come behind them.
COLUMNS = (
    *("run", "seed", "command", "data", "test_accuracy", "test_accuracy_views", "views"),
    *("test_cer", "further_tests", "val_accuracy", "trained_on_val", "gamma"),
    *("val_accuracy_gamma_0", "minutes", "pflop", "sample", "samples_per_second", "epochs"),
    *("parameters", "macs_per_sample"),
    *("precision", "cpu", "cores", "bf16_instructions", "torch", "commit", "date"),
    *("test_loss", "val_loss", "criterion", "mode", "gpu", "threads", "at_once"),
)
CURVES = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")
CURVE_COLUMNS = ("run", "seed", "epoch", *CURVES)


def row_of(job: Job, folder: Path) -> dict[str, object]:
    """What is written down of a run that has finished in ``folder``."""
    path = folder / "summary.json"
    summary = read_summary(path)
    assert summary is not None
    gammas, unit = summary["gamma"], summary["data"]["unit"]
    further = summary.get("further_tests", {})
    criterion = summary["criterion"]
    classifies = criterion["metric"] in ("val/accuracy", "val/accuracy_macro")
    return {
        "run": job.run,
        "seed": job.seed,
        "command": job.command,
        "data": summary["data"]["label"],
        **{f"test_{name}": value for name, value in summary["test"].items()},
        "views": summary.get("test_views", ""),
        "further_tests": _told(further, criterion["metric"].rpartition("/")[2]),
        **{f"val_{name}": value for name, value in summary["val"].items()},
        "trained_on_val": summary["data"]["train_on_val"],
        "gamma": " ".join(f"{value:.4f}" for value in gammas.values()),
        "val_accuracy_gamma_0": accuracy_without_gamma(folder) if gammas and classifies else "",
        **{key: summary[key] for key in ("pflop", "epochs", "parameters")},
        "sample": unit,
        "macs_per_sample": summary[f"macs_per_{unit}"],
        "minutes": f"{summary['minutes']:.2f}",
        "samples_per_second": f"{summary[f'{unit}s_per_second']:.0f}",
        "precision": summary["precision"],
        "cpu": summary["machine"]["processor"],
        "gpu": summary["machine"]["gpu"],
        "cores": usable_cores(),
        "threads": summary["machine"].get("threads", ""),
        "bf16_instructions": bf16_instructions(),
        "torch": summary["versions"]["torch"],
        "commit": " ".join(filter(None, [*summary["earlier_commits"], summary["commit"]])),
        "date": date.fromtimestamp(path.stat().st_mtime).isoformat(),
        "criterion": criterion["metric"],
        "mode": criterion["mode"],
    }


def _told(further: Mapping[str, Mapping[str, float]], metric: str) -> str:
    return "; ".join(f"{name}: {found[metric]:.4f}" for name, found in further.items())


def accuracy_without_gamma(folder: Path) -> float:
    """Validation accuracy of the trained network with every gamma set to 0."""
    import torch
    from hydra.utils import instantiate

    import cvattn

    network = cvattn.load(folder / "checkpoints" / "last.ckpt")
    with torch.no_grad():
        for block in network.modules():
            if isinstance(block, cvattn.blocks.MapAttention):
                block.make_identity()
    meta: Any = network.meta
    data = instantiate(meta["config"]["data"])
    data.prepare_data()
    network = network.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        right = sum(
            int((network(images).argmax(-1) == labels).sum())
            for images, labels in data.val_dataloader()
        )
    return right / len(data.split("val").labels)


def epochs_of(job: Job, folder: Path) -> list[dict[str, object]]:
    """The learning curves of a finished run: a row for each epoch."""
    summary: dict[str, Any] = read_summary(folder / "summary.json") or {}
    keys = dict.fromkeys([*CURVES, summary["criterion"]["metric"]])
    return [
        {"run": job.run, "seed": job.seed, "epoch": epoch + 1}
        | {key: f"{row[key]:.5f}" for key in keys if key in row}
        for epoch, row in sorted(read_metrics(folder / "metrics.csv").items())
    ]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file; none if it is not there."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(
    path: Path,
    columns: Sequence[str],
    rows: Iterable[Mapping[str, object]],
    instead_of: Mapping[str, str] | None = None,
) -> None:
    """Add the rows, all or nothing, in place of those that have the values of ``instead_of``.

    Raises:
        CannotWrite: what was there is as it was.
    """
    every: list[Mapping[str, object]] = [
        row
        for row in read_rows(path)
        if instead_of is None or any(row[key] != value for key, value in instead_of.items())
    ]
    every += rows
    text = io.StringIO()
    further = dict.fromkeys(key for row in every for key in row if key not in columns)
    writer = csv.DictWriter(text, [*columns, *further], restval="")
    writer.writeheader()
    writer.writerows(every)
    make_folder(path.parent)
    write_text(path, text.getvalue())

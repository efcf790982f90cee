"""What run_queue.py writes down of a finished run, and the files that hold it."""

import csv
import io
from pathlib import Path

import machine
from queue_jobs import Job

from cvattn.harness.reporting.csv_log import read_metrics
from cvattn.harness.reporting.summary import read_summary
from cvattn.system.files import make_folder, write_text

COLUMNS = (
    *("run", "seed", "command", "data", "test_accuracy", "test_accuracy_views", "views"),
    *("test_cer", "further_tests", "val_accuracy", "trained_on_val", "gamma"),
    *("val_accuracy_gamma_0", "minutes", "pflop", "sample", "samples_per_second", "epochs"),
    *("parameters", "macs_per_sample"),
    *("precision", "cpu", "cores", "bf16_instructions", "torch", "commit", "date"),
    *("test_loss", "val_loss"),
)
CURVES = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")
CURVE_COLUMNS = ("run", "seed", "epoch", *CURVES)


def row_of(job: Job, folder: Path) -> dict[str, object]:
    """What is written down of a finished run."""
    summary = read_summary(folder / "summary.json")
    assert summary is not None
    facts = machine.facts()
    gammas, unit = summary["gamma"], summary["data"]["unit"]
    further = summary.get("further_tests", {})
    classifies = "accuracy" in summary["val"]
    return {
        "run": job.run,
        "seed": job.seed,
        "command": job.command,
        "data": summary["data"]["label"],
        "test_accuracy": summary["test"].get("accuracy", ""),
        "test_accuracy_views": summary["test"].get("accuracy_views", ""),
        "views": summary.get("test_views", ""),
        "test_cer": summary["test"].get("cer", ""),
        "further_tests": "; ".join(f"{k}: {v['accuracy']:.4f}" for k, v in further.items()),
        "val_accuracy": summary["val"].get("accuracy", ""),
        "trained_on_val": summary["data"]["train_on_val"],
        "gamma": " ".join(f"{value:.4f}" for value in gammas.values()),
        "val_accuracy_gamma_0": accuracy_without_gamma(folder) if gammas and classifies else "",
        **{key: summary[key] for key in ("pflop", "epochs", "parameters")},
        "sample": unit,
        "macs_per_sample": summary[f"macs_per_{unit}"],
        "minutes": f"{summary['minutes']:.2f}",
        "samples_per_second": f"{summary[f'{unit}s_per_second']:.0f}",
        "precision": summary["precision"],
        **{key: facts[key] for key in ("cpu", "bf16_instructions", "torch", "date")},
        "cores": machine.cores(),
        "commit": " ".join(filter(None, [*summary["earlier_commits"], summary["commit"]])),
        "test_loss": summary["test"].get("loss", ""),
        "val_loss": summary["val"].get("loss", ""),
    }


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
    data = instantiate(network.meta["config"]["data"])
    data.prepare_data()
    network = network.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        right = sum(
            int((network(images).argmax(-1) == labels).sum())
            for images, labels in data.val_dataloader()
        )
    return right / len(data.split("val").labels)


def epochs_of(job: Job, folder: Path) -> list[dict[str, object]]:
    rows = read_metrics(folder / "metrics.csv")
    return [
        {"run": job.run, "seed": job.seed, "epoch": epoch + 1}
        | {key: f"{row[key]:.5f}" for key in CURVES if key in row}
        for epoch, row in sorted(rows.items())
    ]


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(
    path: Path,
    columns: tuple[str, ...],
    rows: list[dict[str, object]],
    instead_of: dict[str, str] | None = None,
) -> None:
    """Add the rows, all or nothing, in place of those that have the values of ``instead_of``."""
    kept = [
        row
        for row in read_rows(path)
        if instead_of is None or any(row[key] != value for key, value in instead_of.items())
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows([*kept, *rows])
    make_folder(path.parent)
    write_text(path, text.getvalue())

"""What ``cvattn evaluate`` does with a network of several labels: average precision of each."""

import argparse
import json
import math
import os
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torchmetrics.functional.classification import multilabel_f1_score

from cvattn.cli.arguments import parse_data, say
from cvattn.cli.common import CommandError, folder_beside, shown
from cvattn.core.devices import device_of
from cvattn.data import DataInfo, ImageDataModule
from cvattn.inference import Classifier, NotFiniteError
from cvattn.inference.own_data import choose_data, in_order, loaded
from cvattn.system.files import make_folder, write_text
from cvattn.tasks.average_precision import average_precision


def evaluate_labels(classifier: Classifier, args: argparse.Namespace) -> int:
    """Leaves ``evaluation.json``. Returns 0."""
    if args.views != "none":
        raise CommandError("--views is for networks that name one class of an image")
    data, notes = choose_data(classifier, *parse_data(args.data))
    for note in notes:
        say(note)
    info = loaded(data)
    folder = Path(args.output or folder_beside(Path(args.checkpoint), "evaluation"))
    content = _measures(*_logits(classifier, data, args.split), classifier.classes)
    try:
        make_folder(folder)
        _write(folder, content, classifier, info, args)
    except OSError as error:
        raise CommandError(f"cannot write into {shown(folder)}: {error}") from error
    _show(content, classifier, info, args.split)
    print(f"{shown(folder)}/: evaluation.json")
    return 0


def _logits(classifier: Classifier, data: ImageDataModule, split: str) -> tuple[Tensor, Tensor]:
    logits, labels, device = [], [], device_of(classifier.network)
    for images, truth in in_order(classifier, data, split):
        with torch.inference_mode():
            logits.append(classifier.network(images.to(device)).float().cpu())
        labels.append(truth)
    found = torch.cat(logits)
    if not found.isfinite().all():
        raise NotFiniteError
    return found, torch.cat(labels)


def _measures(logits: Tensor, labels: Tensor, classes: tuple[str, ...]) -> dict:
    """In plain values; null where no image has the label."""
    given, truth = (logits > 0).long(), labels.long()
    precision = average_precision(logits, labels)
    count = len(classes)
    scores = multilabel_f1_score(given, truth, num_labels=count, average="none")
    return {
        "images": len(labels),
        "mean_average_precision": _plain(float(precision.nanmean())),
        "f1_macro": float(scores.mean()),
        "labels": {
            name: {
                "images": int(truth[:, at].sum()),
                "given": int(given[:, at].sum()),
                "average_precision": _plain(float(precision[at])),
                "f1": float(scores[at]),
            }
            for at, name in enumerate(classes)
        },
    }


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def _write(
    folder: Path, content: dict, classifier: Classifier, info: DataInfo, args: argparse.Namespace
) -> None:
    told = {
        "checkpoint": os.path.abspath(args.checkpoint),
        "network": type(classifier.network).__name__,
        "data": {
            "name": info.name,
            "split": args.split,
            "source": info.source,
            "fingerprint": info.fingerprint,
        },
        **content,
    }
    write_text(folder / "evaluation.json", json.dumps(told, indent=2) + "\n")


def _show(content: dict, classifier: Classifier, info: DataInfo, split: str) -> None:
    kind = type(classifier.network).__name__
    table = Table(title=Text(f"{kind} on {info.label}, {split}"), title_justify="left")
    table.add_column("label", overflow="fold")
    for name in ("images", "given to", "average precision", "F1"):
        table.add_column(name, justify="right", overflow="fold")

    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.2%}"

    for name, row in content["labels"].items():
        table.add_row(
            Text(shown(name)),
            f"{row['images']:,}",
            f"{row['given']:,}",
            share(row["average_precision"]),
            share(row["f1"]),
        )
    table.add_section()
    mean, f1 = share(content["mean_average_precision"]), share(content["f1_macro"])
    table.add_row("mean", f"{content['images']:,}", "", mean, f1, style="bold")
    console = Console(highlight=False)
    console.print(table)
    if any(row["average_precision"] is None for row in content["labels"].values()):
        console.print("-: no image has the label; it does not count in the mean.")

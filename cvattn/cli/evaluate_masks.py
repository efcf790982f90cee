"""What ``cvattn evaluate`` does with a network that names every pixel: IoU, class by class."""

import argparse
import csv
import json
import math
import os
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from cvattn.cli.arguments import parse_data, say
from cvattn.cli.common import CommandError, folder_beside, shown
from cvattn.core.devices import device_of
from cvattn.data import DataInfo, ImageDataModule
from cvattn.data.images.masks import MaskLoader
from cvattn.inference import NotFiniteError, Segmenter
from cvattn.inference.own_data import choose_data, loaded
from cvattn.system import csv_cell
from cvattn.system.files import make_folder, write_text
from cvattn.tasks.mean_iou import MeanIoU, class_iou, mean_iou, pixel_accuracy


def evaluate_masks(segmenter: Segmenter, args: argparse.Namespace) -> int:
    """Leaves ``evaluation.json`` and ``confusion.csv`` (counts of pixels). Returns 0.

    Images and masks are cut as in training, and pixels without a class count nowhere.
    """
    if args.views != "none":
        raise CommandError("--views is for networks that name whole images")
    data, notes = choose_data(segmenter, *parse_data(args.data))
    for note in notes:
        say(note)
    info = loaded(data)
    folder = Path(args.output or folder_beside(Path(args.checkpoint), "evaluation"))
    confusion = _confusion(segmenter, data, args.split)
    try:
        make_folder(folder)
        _write(folder, confusion, segmenter, info, args)
    except OSError as error:
        raise CommandError(f"cannot write into {shown(folder)}: {error}") from error
    _show(confusion, segmenter, info, args.split)
    print(f"{shown(folder)}/: evaluation.json, confusion.csv")
    return 0


def _confusion(segmenter: Segmenter, data: ImageDataModule, split: str) -> Tensor:
    """Counts of pixels (true class, predicted class), int64."""
    part = data.split(split)
    if not len(part.images):
        raise CommandError(f"the data has no {split} images")
    loader = MaskLoader(
        part.all_images(),
        part.labels,
        batch_size=data.eval_batch_size,
        mean=segmenter.mean,
        std=segmenter.std,
    )
    metric, device = MeanIoU(len(segmenter.classes)), device_of(segmenter.network)
    for images, masks in loader:
        with torch.inference_mode():
            logits = segmenter.network(images.to(device)).float()
        if not logits.isfinite().all():
            raise NotFiniteError
        metric.update(logits.argmax(1).cpu(), masks.long())
    return metric.confmat


def _write(
    folder: Path,
    confusion: Tensor,
    segmenter: Segmenter,
    info: DataInfo,
    args: argparse.Namespace,
) -> None:
    iou = class_iou(confusion).tolist()
    content = {
        "checkpoint": os.path.abspath(args.checkpoint),
        "network": type(segmenter.network).__name__,
        "data": {
            "name": info.name,
            "split": args.split,
            "source": info.source,
            "fingerprint": info.fingerprint,
        },
        "classes": list(segmenter.classes),
        "mean_iou": float(mean_iou(confusion)),
        "pixel_accuracy": float(pixel_accuracy(confusion)),
        "class_iou": [None if math.isnan(value) else value for value in iou],
        "pixels": int(confusion.sum()),
    }
    write_text(folder / "evaluation.json", json.dumps(content, indent=2) + "\n")
    names = [csv_cell(name) for name in segmenter.classes]
    with (folder / "confusion.csv").open(
        "w", newline="", encoding="utf-8", errors="backslashreplace"
    ) as file:
        rows = csv.writer(file)
        rows.writerow(["is \\ taken for", *names])
        rows.writerows([name, *row] for name, row in zip(names, confusion.tolist(), strict=True))


def _show(confusion: Tensor, segmenter: Segmenter, info: DataInfo, split: str) -> None:
    kind = type(segmenter.network).__name__
    table = Table(title=Text(f"{kind} on {info.label}, {split}"), title_justify="left")
    table.add_column("class", overflow="fold")
    for name in ("pixels", "right", "IoU"):
        table.add_column(name, justify="right", overflow="fold")
    counts, right = confusion.sum(1), confusion.diagonal()
    for index, iou in enumerate(class_iou(confusion).tolist()):
        table.add_row(
            Text(shown(segmenter.classes[index])),
            f"{counts[index]:,}",
            f"{right[index] / counts[index]:.2%}" if counts[index] else "-",
            "-" if math.isnan(iou) else f"{iou:.2%}",
        )
    table.add_section()
    table.add_row(
        "all; IoU in the mean",
        f"{counts.sum():,}",
        f"{float(pixel_accuracy(confusion)):.2%}",
        f"{float(mean_iou(confusion)):.2%}",
        style="bold",
    )
    console = Console(highlight=False)
    console.print(table)
    if class_iou(confusion).isnan().any():
        console.print("-: a class that is neither in the masks nor predicted; it does not count.")

"""``cvattn evaluate CHECKPOINT``: how good the network is on a whole data set, class by class."""

import csv
import dataclasses
import json
import os
import platform
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text
from torch import Tensor

import cvattn
from cvattn.cli.arguments import parse_data
from cvattn.cli.common import (
    CommandError,
    Parser,
    add_checkpoint,
    folder_beside,
    own_network,
    shown,
)
from cvattn.cli.evaluate_labels import evaluate_labels
from cvattn.cli.evaluate_masks import evaluate_masks
from cvattn.cli.figures import draw_confusion, draw_reliability
from cvattn.cli.measures import BINS, Measures, measure
from cvattn.data import VIEWS, BatchLoader, DataInfo, ImageDataModule, views_of
from cvattn.inference import Classifier, as_classifier, as_segmenter, open_network
from cvattn.inference.image_network import names_pixels
from cvattn.inference.own_data import MODULES, choose_data, in_order, loaded
from cvattn.system import csv_cell, figures

_MOST_ROWS = 50


def run(arguments: Sequence[str]) -> int:
    """The command. Leaves ``evaluation.json``, ``confusion.{png,csv}`` and ``reliability.png``."""
    args = _parser().read(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = open_network(args.checkpoint, device, network=own_network(args))
    if names_pixels(network):
        return evaluate_masks(as_segmenter(network, args.checkpoint), args)
    classifier = as_classifier(network, args.checkpoint)
    if classifier.several:
        return evaluate_labels(classifier, args)
    data, notes = choose_data(classifier, *parse_data(args.data))
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    for note in notes:
        errors.print(f"note: {shown(note)}", markup=False)
    info = loaded(data)
    folder = (
        Path(args.output) if args.output else folder_beside(Path(args.checkpoint), "evaluation")
    )
    loader = in_order(classifier, data, args.split)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        measures = measure(*_logits(classifier, loader, args.views, device, errors))
        _write(folder, measures, classifier, data, args, device)
    except torch.OutOfMemoryError as error:
        raise CommandError(
            f"the GPU's memory does not hold batches of {data.eval_batch_size}; set a smaller "
            "data.eval_batch_size"
        ) from error
    except OSError as error:
        raise CommandError(f"cannot write into {shown(folder)}: {error}") from error
    _show(Console(highlight=False), measures, classifier, info, _what(args), folder)
    return 0


def _logits(
    classifier: Classifier, loader: BatchLoader, views: str, device: str, errors: Console
) -> tuple[Tensor, Tensor]:
    logits, labels = [], []
    batches = track(
        loader,
        description="evaluating",
        total=len(loader),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )
    with torch.inference_mode(), _full_precision(device):
        for images, truth in batches:
            seen = views_of(images.to(device), views)
            logits.append(sum(w * classifier.network(view).float() for w, view in seen).cpu())
            labels.append(truth)
    found = torch.cat(logits)
    bad = int((~found.isfinite()).any(-1).sum())
    if bad:
        raise CommandError(f"the network gives values that are not finite for {bad} images", 1)
    return found, torch.cat(labels)


def _full_precision(device: str) -> AbstractContextManager[object]:
    """Convolutions in fp32: left alone, cuDNN rounds their inputs to 10 bits (TF32)."""
    if device == "cpu":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def _write(
    folder: Path,
    measures: Measures,
    classifier: Classifier,
    data: ImageDataModule,
    args,
    device: str,
) -> None:
    info = data.describe()
    content = {
        "checkpoint": os.path.abspath(args.checkpoint),
        "network": type(classifier.network).__name__,
        "data": {
            "name": info.name,
            "label": info.label,
            "split": args.split,
            "skipped": len(getattr(data, "skipped", ())),  # unreadable files of all splits
            "source": info.source,
            "official_pixels": info.official_pixels,
            "fingerprint": info.fingerprint,
        },
        "views": args.views,
        "classes": list(classifier.outputs),
        **{k: v for k, v in dataclasses.asdict(measures).items() if k != "confusion"},  # in the CSV
        "device": device,
        "precision": "float32",
        "versions": {
            "python": platform.python_version(),
            "cvattn": cvattn.__version__,
            "torch": torch.__version__,
        },
    }
    title = f"{content['network']} on {info.label}, {_what(args)}: accuracy {measures.accuracy:.2%}"
    with (folder / "confusion.csv").open(
        "w", newline="", encoding="utf-8", errors="backslashreplace"
    ) as file:
        rows = csv.writer(file)
        names = [csv_cell(name) for name in classifier.outputs]
        rows.writerow(["is \\ taken for", *names])
        rows.writerows([name, *row] for name, row in zip(names, measures.confusion, strict=True))
    (folder / "evaluation.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    with figures.tolerate_failure("confusion.png"):
        draw_confusion(measures, classifier.outputs, folder / "confusion.png", title=title)
    with figures.tolerate_failure("reliability.png"):
        draw_reliability(measures, folder / "reliability.png", title=title)


def _what(args) -> str:
    """What the figures are of, in words."""
    return args.split if args.views == "none" else f"{args.split}, views {args.views}"


def _show(
    console: Console,
    measures: Measures,
    classifier: Classifier,
    info: DataInfo,
    what: str,
    folder: Path,
) -> None:
    kind = type(classifier.network).__name__
    table = Table(title=Text(f"{kind} on {info.label}, {what}"), title_justify="left")
    # Folded where there is no room: a figure cut short is another.
    table.add_column("class", overflow="fold")
    table.add_column("images", justify="right", overflow="fold")
    table.add_column("accuracy", justify="right", overflow="fold")
    table.add_column("mostly taken for", overflow="fold")
    confusion = np.array(measures.confusion)
    order = [i for i, value in enumerate(measures.class_accuracy) if value is not None]
    if len(order) > _MOST_ROWS:
        order = sorted(order, key=lambda i: measures.class_accuracy[i] or 0.0)[:_MOST_ROWS]
    for i in order:
        wrong = confusion[i].copy()
        wrong[i] = 0
        worst = int(wrong.argmax())
        mistake = f"{shown(classifier.outputs[worst])} ({wrong[worst]})" if wrong[worst] else ""
        table.add_row(
            Text(shown(classifier.outputs[i])),
            f"{confusion[i].sum():,}",
            f"{measures.class_accuracy[i]:.2%}",
            Text(mistake),
        )
    table.add_section()
    table.add_row("all", f"{measures.images:,}", f"{measures.accuracy:.2%}", style="bold")
    table.add_row("mean of the classes", "", f"{measures.accuracy_macro:.2%}")
    console.print(table)
    if len(order) == _MOST_ROWS < len(classifier.classes):
        console.print(f"The {_MOST_ROWS} worst classes are shown, confusion.csv has all.")
    console.print(
        f"cross-entropy {measures.cross_entropy:.4f}, expected calibration error "
        f"{measures.calibration_error:.2%} ({BINS} bins)"
    )
    if info.official_pixels is not None:
        console.print(
            "The pixels are the official ones."
            if info.official_pixels
            else "The pixels are a JPEG copy, not the official ones: accuracies on it are lower.",
        )
    files = "evaluation.json, confusion.png, confusion.csv, reliability.png"
    console.print(f"{shown(folder)}/: {files}", markup=False, soft_wrap=True)


def _parser() -> Parser:
    parser = Parser(
        prog="cvattn evaluate",
        usage="cvattn evaluate CHECKPOINT [data=NAME] [data.KEY=VALUE ...] [--split test|val] "
        "[--views none|flip|flip_shift] [-o FOLDER]",
        description="Accuracy for each class, confusion matrix and calibration, in float32. "
        "Of a network that names every pixel: intersection over union for each class; of one that "
        "learned several labels an image: average precision for each label. Without "
        "data=... on the data that the checkpoint says it was trained on.",
    )
    add_checkpoint(parser)
    parser.add_argument(
        "data",
        nargs="*",
        help=f"data={'|'.join(MODULES)}, and any argument of it, such as data.root=FOLDER",
    )
    parser.add_argument("--split", choices=("test", "val"), default="test")
    parser.add_argument(
        "--views", choices=VIEWS, default="none", help="average the logits of mirrored, moved views"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        help="for the files (default: evaluation/ in the run's folder)",
    )
    return parser

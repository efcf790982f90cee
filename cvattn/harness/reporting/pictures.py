"""The pictures of a run: learning curves, and what attention looks at."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor, nn

from cvattn.maps import attention_heat, attention_modules, overlay
from cvattn.system import figures
from cvattn.system.files import whole_file

_MOST_BLOCKS = 4
_SHARES = {
    *("accuracy", "character error rate", "mean IoU", "mean average precision"),
    "spread within classes",
}


def draw_curves(rows: Sequence[dict[str, Any]], path: Path, *, title: str) -> None:
    """Loss, accuracy and what else there is (CER, gamma, entropy) over epochs -> a PNG."""
    if not rows:
        return
    panels: list[tuple[str, list[str]]] = [("loss", ["train/loss", "val/loss"])]
    if any("val/accuracy" in row for row in rows):
        panels.append(("accuracy", ["train/accuracy", "val/accuracy", *_macro(rows)]))
    for start, label in (
        ("val/cer", "character error rate"),
        ("val/mean_iou", "mean IoU"),
        ("val/mean_average_precision", "mean average precision"),
        ("val/swd", "sliced Wasserstein distance"),
        ("val/spread", "spread within classes"),
        ("gamma/", "gamma"),
        ("entropy/", "attention entropy (nats)"),
        ("lr", "learning rate"),
    ):
        keys = sorted({key for row in rows for key in row if key.startswith(start)})
        if keys:
            panels.append((label, keys))
    figure = Figure(figsize=(3.6 * len(panels), 3.0), layout="constrained")
    for axes, (label, keys) in zip(
        np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True
    ):
        for key in keys:
            points = [(row["epoch"] + 1, row[key]) for row in rows if key in row]
            if points:
                stage, _, measure = key.partition("/")
                name = stage if stage in ("train", "val") else measure or stage
                name += " macro" if measure.endswith("_macro") else ""
                epochs, values = zip(*points, strict=True)
                axes.plot(epochs, values, marker="o", markersize=2.5, label=figures.label(name))
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(label, fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if label in _SHARES:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend(fontsize=7, framealpha=0.7, edgecolor="none")
    figure.suptitle(figures.label(title), fontsize=11)
    with whole_file(path) as file:
        figures.save(figure, file)


def _macro(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The accuracy in which each class counts the same, if it is another."""
    key = "val/accuracy_macro"
    differs = any(abs(row[key] - row["val/accuracy"]) > 1e-6 for row in rows if key in row)
    return [key] if differs else []


def draw_attention(
    network: nn.Module,
    images: Tensor,
    labels: Sequence[int],
    classes: Sequence[str],
    path: Path,
    *,
    to_picture: Callable[[Tensor], np.ndarray],
) -> bool:
    """Each image above the heat of its blocks, seen from the middle of the image -> a PNG.

    Args:
        network: in eval mode, on ``images``' device.
        images: (B, C, H, W), normalised.
        to_picture: normalised images -> (B, H, W, C) uint8.

    Returns:
        Whether there was anything to draw.
    """
    height, width = images.shape[2:]
    found = (
        attention_heat(network, images, at=(height // 2, width // 2))
        if attention_modules(network)
        else {}
    )
    if not found:
        return False
    with torch.no_grad():
        guesses = network(images).argmax(-1).tolist()
    titles = [
        figures.label(classes[label], 22)
        + ("" if guess == label else f"\n(taken for {figures.label(classes[guess], 14)})")
        for label, guess in zip(labels, guesses, strict=True)
    ]
    draw_heats(to_picture(images), titles, found, path)
    return True


def draw_heats(
    pictures: np.ndarray, titles: Sequence[str], found: Mapping[str, Tensor], path: Path
) -> None:
    """Pictures (B, H, W, C) above where their middle looks in some of the blocks -> a PNG.

    Args:
        found: as :func:`cvattn.maps.attention_heat` gives it.
    """
    # From the first block to the last.
    places = np.linspace(0, len(found) - 1, min(_MOST_BLOCKS, len(found)))
    heats = {name: found[name].mean(dim=1) for name in (list(found)[round(i)] for i in places)}
    size = (1.6 * len(pictures), 1.6 * (1 + len(heats)) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(1 + len(heats), len(pictures), squeeze=False)
    height, width = pictures.shape[1:3]
    middle = (width / 2 - 0.5, height / 2 - 0.5)
    for column, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        grid[0, column].imshow(picture, cmap="gray", vmin=0, vmax=255)  # colours if there are any
        grid[0, column].set_title(title, fontsize=8)
        for row, (name, heat) in enumerate(heats.items(), start=1):
            axes = grid[row, column]
            axes.imshow(overlay(picture, heat[column]))
            axes.plot(*middle, marker="+", color="cyan", markersize=7, markeredgewidth=1.2)
            if column == 0:
                axes.set_title(figures.label(name), fontsize=7, loc="left")
    for axes in grid.flat:
        axes.set_axis_off()
    figure.suptitle("where the middle (+) looks; brighter = more", fontsize=9)
    with whole_file(path) as file:
        figures.save(figure, file)

"""The pictures of a run: learning curves, and what attention looks at."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor, nn

from cvattn.blocks import SelfAttention2d
from cvattn.maps import attention_modules, capture_attention

_MOST_BLOCKS = 4


def draw_curves(rows: Sequence[dict[str, Any]], path: Path, *, title: str) -> None:
    """Loss, accuracy, and (where a network has them) gamma and entropy, over epochs -> a PNG."""
    if not rows:
        return
    panels: list[tuple[str, list[str]]] = [
        ("loss", ["train/loss", "val/loss"]),
        ("accuracy", ["train/accuracy", "val/accuracy"]),
    ]
    for kind, label in (("gamma", "gamma"), ("entropy", "attention entropy (nats)")):
        keys = sorted({key for row in rows for key in row if key.startswith(f"{kind}/")})
        if keys:
            panels.append((label, keys))
    figure = Figure(figsize=(3.6 * len(panels), 3.0), layout="constrained")
    for axes, (label, keys) in zip(
        np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True
    ):
        for key in keys:
            points = [(row["epoch"] + 1, row[key]) for row in rows if key in row]
            if points:
                name = key.split("/", 1)[0 if label in ("loss", "accuracy") else 1]
                epochs, values = zip(*points, strict=True)
                axes.plot(epochs, values, marker="o", markersize=2.5, label=name)
        axes.set_xlabel("epoch")
        axes.set_title(label, fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if label == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend(fontsize=7, frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)


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
    blocks = _drawable(network)
    if not blocks:
        return False
    with torch.no_grad():
        guesses = network(images).argmax(-1).tolist()
    heats = {name: _centre_heat(network, name, images) for name in blocks}
    pictures = to_picture(images)
    figure = Figure(figsize=(1.6 * len(images), 1.6 * (1 + len(heats)) + 0.6), layout="constrained")
    grid = figure.subplots(1 + len(heats), len(images), squeeze=False)
    middle = (images.shape[3] / 2 - 0.5, images.shape[2] / 2 - 0.5)
    for column, (picture, label, guess) in enumerate(zip(pictures, labels, guesses, strict=True)):
        right = "" if guess == label else f"\n(taken for {classes[guess]})"
        grid[0, column].imshow(picture)
        grid[0, column].set_title(f"{classes[label]}{right}", fontsize=8)
        for row, (name, heat) in enumerate(heats.items(), start=1):
            axes = grid[row, column]
            axes.imshow(picture.mean(-1), cmap="gray", alpha=0.55)
            axes.imshow(heat[column].numpy(), cmap="inferno", alpha=0.65)
            axes.plot(*middle, marker="+", color="cyan", markersize=7, markeredgewidth=1.2)
            if column == 0:
                axes.set_title(name, fontsize=7, loc="left")
    for axes in grid.flat:
        axes.set_axis_off()
    figure.suptitle("where the middle (+) looks; brighter = more", fontsize=9)
    figure.savefig(path, dpi=130)
    return True


def _drawable(network: nn.Module) -> list[str]:
    """The blocks whose keys lie on an image grid; at most four, spread from first to last."""
    on_grid = [
        name
        for name, block in attention_modules(network).items()
        if isinstance(block, SelfAttention2d) or hasattr(network, "grid")
    ]
    count = min(_MOST_BLOCKS, len(on_grid))
    return [on_grid[round(i)] for i in np.linspace(0, len(on_grid) - 1, count)] if count else []


def _centre_heat(network: nn.Module, name: str, images: Tensor) -> Tensor:
    """(B, H, W) in 0..1: weights of the centre's query, mean over heads, laid on the image."""
    with torch.no_grad(), capture_attention(network, [name], rows=[0]) as probe:
        network(images[:1])
    prefix = getattr(network, "num_prefix_tokens", 0) if name not in probe.query_grid else 0
    tokens = cast(tuple[int, int], getattr(network, "grid", None))
    height, width = probe.query_grid.get(name) or tokens
    row = prefix + (height // 2) * width + width // 2
    with torch.no_grad(), capture_attention(network, [name], rows=[row]) as maps:
        network(images)
    weights = maps[name].float().mean(dim=1)[:, 0, prefix:]
    heat = weights.unflatten(1, maps.key_grid.get(name) or tokens)
    heat = F.interpolate(heat[:, None], size=images.shape[-2:], mode="bilinear")[:, 0]
    low, high = heat.amin((1, 2), keepdim=True), heat.amax((1, 2), keepdim=True)
    return ((heat - low) / (high - low).clamp_min(1e-12)).cpu()

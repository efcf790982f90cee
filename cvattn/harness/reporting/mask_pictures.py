"""Masks beside the truth: what a segmentation network says of test images."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cvattn.core.devices import device_of
from cvattn.core.modes import in_eval_mode
from cvattn.data import VOID, MaskDataModule
from cvattn.inference.mask_pictures import colour_table, mask_on_image
from cvattn.system import figures
from cvattn.system.files import whole_file
from cvattn.tasks import SegmentationTask

_IMAGES = 6
_MOST_NAMED = 20


def draw_masks(task: SegmentationTask, data: MaskDataModule, path: Path) -> None:
    """Test images, their masks on them and the predicted ones, in rows of three -> a PNG."""
    images, masks, _ = data.example_images(_IMAGES, split="test")
    with in_eval_mode(task.network), torch.no_grad():
        guesses = task(images.to(device_of(task.network))).argmax(1).cpu()
    pictures, info = data.denormalise(images), data.describe()
    values = np.zeros(VOID + 1, dtype=np.uint8)
    values[: len(info.values)] = info.values
    tall, wide = images.shape[-2:]
    width = 2.2 * wide / max(tall, wide)
    figure = Figure(
        figsize=(3 * width + 1.6, len(images) * width * tall / wide + 0.5), layout="constrained"
    )
    grid = figure.subplots(len(images), 3, squeeze=False)
    for row, (picture, mask, guess) in enumerate(zip(pictures, masks, guesses, strict=True)):
        real = mask != VOID
        right = float((guess == mask)[real].double().mean()) if real.any() else float("nan")
        shown = (
            np.broadcast_to(picture, (*picture.shape[:2], 3)),
            mask_on_image(picture, values[mask], real.numpy()),
            mask_on_image(picture, values[guess], np.full(guess.shape, True)),
        )
        for axes, pixels in zip(grid[row], shown, strict=True):
            axes.imshow(pixels, interpolation="nearest")
            axes.set_axis_off()
        said = "" if np.isnan(right) else f", {right:.1%} right"
        grid[row, 2].set_title(f"predicted{said}", fontsize=8, pad=2)
    for axes, title in zip(grid[0, :2], ("image", "mask"), strict=True):
        axes.set_title(title, fontsize=8, pad=2)
    colours = colour_table()[values] / 255
    figure.legend(
        handles=[
            Patch(facecolor=colours[index], edgecolor="grey", label=figures.label(name, 22))
            for index, name in enumerate(info.classes[:_MOST_NAMED])
        ],
        loc="outside right upper",
        fontsize=7,
        framealpha=0.0,
    )
    figure.suptitle("test images, their masks and the predicted ones", fontsize=9)
    with whole_file(path) as file:
        figures.save(figure, file)

"""Where a network looks while it writes: cross-attention for each character of its answers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from cvattn.core.alphabet import BEGIN, END, PAD
from cvattn.data.info import LineInfo
from cvattn.data.sequences.base import SequenceDataModule
from cvattn.maps import capture_attention, heat_on_image, overlay
from cvattn.models.decoding import generate
from cvattn.system import figures
from cvattn.system.files import whole_file
from cvattn.tasks import SequenceTask

_CHOICE = 24  # samples of which the longest are shown
_LINES, _STRINGS = 3, 4
_END_SIGN = "end"


def draw_reading(task: SequenceTask, data: SequenceDataModule, path: Path) -> None:
    """Of the longest of some test samples: a strip of pictures for a line, a table for a string.

    The weights are the last decoder layer's, mean over heads.

    Args:
        task: its network is in eval mode.
    """
    info = data.describe()
    inputs, targets = data.examples(_CHOICE, "test")
    longest = (targets != PAD).sum(1).argsort(descending=True, stable=True)
    chosen = longest[: _LINES if isinstance(info, LineInfo) else _STRINGS]
    inputs, targets = tuple(given[chosen].to(task.device) for given in inputs), targets[chosen]
    answers, weights = watch(task.network, inputs, max_length=info.max_length)
    said = [_characters(row, task) for row in answers.tolist()]
    truth = [task.alphabet.decode(row) for row in targets.tolist()]
    if isinstance(info, LineInfo):
        figure = _strips(task.network, inputs, said, truth, weights)
    else:
        sources = [[*task.alphabet.decode(row), _END_SIGN] for row in inputs[0].tolist()]
        figure = _tables(sources, said, truth, weights)
    with whole_file(path) as file:
        figures.save(figure, file)


def watch(
    network: nn.Module, inputs: tuple[Tensor, ...], *, max_length: int
) -> tuple[Tensor, Tensor]:
    """The network's answers (B, T), and the weights (B, T, S) with which each token was chosen."""
    answers = generate(network, *inputs, max_length=max_length).tokens  # type: ignore[arg-type]
    given = torch.cat([torch.full_like(answers[:, :1], BEGIN), answers[:, :-1]], dim=1)
    last = [name for name, _ in network.named_modules() if name.endswith("cross_attn")][-1]
    with torch.no_grad(), capture_attention(network, [last]) as maps:
        network(*inputs, given)
    return answers.cpu(), maps[last].float().mean(1).cpu()


def _characters(row: Sequence[int], task: SequenceTask) -> list[str]:
    """What is shown of an answer: its characters, and the end where it came to one."""
    return [*task.alphabet.decode(row), *([_END_SIGN] if END in row else [])]


def _strips(
    network: nn.Module,
    inputs: tuple[Tensor, ...],
    said: Sequence[Sequence[str]],
    truth: Sequence[str],
    weights: Tensor,
) -> Figure:
    """A column for each line, and in it a picture for each character."""
    images, widths = (given.cpu() for given in inputs)
    rows, columns = max(map(len, said)), len(said)
    figure = Figure(figsize=(3.2 * columns, 0.62 * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for column, (characters, wanted) in enumerate(zip(said, truth, strict=True)):
        width = int(widths[column])
        pixels = _pixels(images[column, 0, :, :width])
        for row, character in enumerate(characters):
            heat = weights[column, row].unflatten(0, network.memory_grid(images))  # type: ignore[operator]
            heat = heat_on_image(heat, (images.shape[-2], images.shape[-1]))
            axes = grid[row, column]
            axes.imshow(overlay(pixels, heat[:, :width]))
            axes.set_ylabel(
                figures.label(character), fontsize=10, rotation=0, ha="right", va="center"
            )
        grid[0, column].set_xlabel(_verdict(characters, wanted), fontsize=8)
        grid[0, column].xaxis.set_label_position("top")
    for axes in grid.flat:
        _bare(axes)
    figure.suptitle("where each character was read; brighter = more", fontsize=9)
    return figure


def _pixels(line: Tensor) -> np.ndarray:
    """Normalised (H, W) -> uint8, from its darkest to its brightest."""
    line = line - line.min()
    return (255 * line / line.max().clamp_min(1e-6)).to(torch.uint8).numpy()


def _tables(
    sources: Sequence[Sequence[str]],
    said: Sequence[Sequence[str]],
    truth: Sequence[str],
    weights: Tensor,
) -> Figure:
    """A table for each string: what was written downwards, what was read across."""
    figure = Figure(figsize=(2.6 * len(sources), 2.9), layout="constrained")
    for axes, source, characters, wanted, table in zip(
        figure.subplots(1, len(sources), squeeze=False)[0],
        sources,
        said,
        truth,
        weights,
        strict=True,
    ):
        axes.imshow(table[: len(characters), : len(source)].numpy(), cmap="inferno", vmin=0)
        axes.set_xticks(range(len(source)), map(figures.label, source), fontsize=7)
        axes.set_yticks(range(len(characters)), map(figures.label, characters), fontsize=7)
        axes.set_title(_verdict(characters, wanted), fontsize=8)
    figure.suptitle("which characters each one was written from; brighter = more", fontsize=9)
    return figure


def _verdict(characters: Sequence[str], wanted: str) -> str:
    said = "".join(c for c in characters if c != _END_SIGN)
    return figures.label(said if said == wanted else f"{said} (is {wanted})")


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)

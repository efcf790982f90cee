"""Four tasks for dense networks that need a look elsewhere, each with a ceiling that is known.

Images of 32 x 32 pixels, in cells of 2 x 2: the position of a 16 x 16 map is a cell. What is in a
cell is drawn at random, of unit variance and of one length, so that nothing near it tells it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CELL, SIDE = 2, 16
PERIODS, HOLES = (3, 6), 0.1
COPIES, NOISE = 32, 0.2
OCTAVES = 4


class Images(NamedTuple):
    """What a network gets (N, channels, 32, 32), what it should say (N, 3, 32, 32), and where.

    The first three channels of what it gets are colours; ``asked``, bool (N, 1, 32, 32), is where
    its answer counts.
    """

    given: Tensor
    truth: Tensor
    asked: Tensor


@dataclass(frozen=True)
class Task:
    """A task, how long it is learned, and what it is measured by.

    Attributes:
        draw: of a number of images and a generator.
        channels: of what a network gets.
        batch, steps: of the training.
        score: of the mean squared errors of the answer and of what was given, where it is asked.
        ceiling: the score that nothing can surpass.
        unit: of both.
        wide: side and dilation of the filter that the wide convolution has.
    """

    draw: Callable[[int, torch.Generator], Images]
    channels: int
    batch: int
    steps: int
    score: Callable[[float, float], float]
    ceiling: float
    unit: str
    wide: tuple[int, int]


def mirror(count: int, generator: torch.Generator) -> Images:
    """The right half is hidden and is the mirror image of the left one.

    There are eight distances from a cell to its image, all along a row. Cells have a colour each. A
    network is told where it is: every pixel's height and width are given as sines and cosines of
    four octaves.
    """
    return _half_hidden(count, (-1,), generator)


def half_turn(count: int, generator: torch.Generator) -> Images:
    """The right half is hidden and is the left one turned by 180 degrees.

    Each of the 128 cells has its image at a distance and in a direction of its own; the rest is as
    in :func:`mirror`.
    """
    return _half_hidden(count, (-1, -2), generator)


def texture(count: int, generator: torch.Generator) -> Images:
    """A tile of 3 to 6 by 3 to 6 cells, repeated; single cells are missing, a tenth of them.

    The size of the tile and where the first one lies differ from image to image. No hole lies on
    the border, and of every hole there is a copy to be seen.
    """
    colours = torch.empty(count, 3, SIDE, SIDE)
    holes = torch.rand(count, SIDE, SIDE, generator=generator) < HOLES
    holes[:, [0, -1]] = False
    holes[:, :, [0, -1]] = False
    for image, hole in zip(colours, holes, strict=True):
        rows, columns = torch.randint(
            PERIODS[0], PERIODS[1] + 1, (2,), generator=generator
        ).tolist()
        tile = _contents(1, 3, rows, columns, generator=generator)[0]
        y = (torch.arange(SIDE) + torch.randint(rows, (1,), generator=generator)) % rows
        x = (torch.arange(SIDE) + torch.randint(columns, (1,), generator=generator)) % columns
        image.copy_(tile[:, y][:, :, x])
        same = y[:, None] * columns + x
        seen = torch.bincount(same[~hole], minlength=rows * columns)
        hole &= seen[same] > 0
    truth, asked = _grown(colours), _grown(holes[:, None])
    return Images(torch.cat(_hidden(truth, asked), 1), truth, asked)


def denoise(count: int, generator: torch.Generator) -> Images:
    """Eight patterns of 2 x 2 pixels, 32 copies of each in cells at random, under Gaussian noise.

    The ideal answer is the mean of a pattern's copies. It gains ``10 log10 32`` dB, and what is
    known of a pattern beforehand adds to that: see :func:`most_gain`.
    """
    kinds = SIDE * SIDE // COPIES
    patterns = _contents(count, 3 * CELL**2, 1, kinds, generator=generator)[:, :, 0]
    which = torch.rand(count, SIDE * SIDE, generator=generator).argsort(1) % kinds
    cells = patterns.gather(2, which[:, None].expand(-1, patterns.shape[1], -1))
    truth = F.pixel_shuffle(cells.unflatten(2, (SIDE, SIDE)), CELL)
    given = truth + NOISE * torch.randn(truth.shape, generator=generator)
    return Images(given, truth, torch.ones_like(truth[:, :1], dtype=torch.bool))


def most_gain() -> float:
    """The most dB that :func:`denoise` allows: of who knows which cells are copies.

    The mean of k copies has k times less noise. That all patterns have one length leaves the
    noise across it, d - 1 of d dimensions (to first order in the noise, which here means to a
    hundredth of a dB).
    """
    dimensions = 3 * CELL**2
    return 10 * math.log10(COPIES * dimensions / (dimensions - 1))


def explained(error: float, _: float) -> float:
    """The share of the variance, which is 1, that an answer explains."""
    return 1.0 - error


def gained(error: float, before: float) -> float:
    """By how many dB an answer is nearer the truth than what was given."""
    return 10 * math.log10(before / error)


SHARE = "of the variance"
TASKS = {
    "mirror": Task(mirror, 4 + 4 * OCTAVES, 8, 300, explained, 1.0, SHARE, (7, 5)),
    "half turn": Task(half_turn, 4 + 4 * OCTAVES, 8, 300, explained, 1.0, SHARE, (7, 5)),
    "texture": Task(texture, 4, 8, 800, explained, 1.0, SHARE, (7, 3)),
    "denoise": Task(denoise, 3, 4, 2000, gained, most_gain(), "dB", (7, 1)),
}


def _contents(
    count: int, channels: int, height: int, width: int, *, generator: torch.Generator
) -> Tensor:
    """(count, channels, height, width): points of a sphere, each channel of variance 1."""
    drawn = torch.randn(count, channels, height, width, generator=generator)
    return F.normalize(drawn, dim=1) * math.sqrt(channels)


def _half_hidden(count: int, flipped: tuple[int, ...], generator: torch.Generator) -> Images:
    left = _contents(count, 3, SIDE, SIDE // 2, generator=generator)
    truth = _grown(torch.cat([left, left.flip(flipped)], -1))
    asked = torch.zeros(count, 1, CELL * SIDE, CELL * SIDE, dtype=torch.bool)
    asked[..., CELL * SIDE // 2 :] = True
    places = _places().expand(count, -1, -1, -1)
    return Images(torch.cat([*_hidden(truth, asked), places], 1), truth, asked)


def _grown(cells: Tensor) -> Tensor:
    """Each cell as CELL x CELL equal pixels."""
    return cells.repeat_interleave(CELL, -2).repeat_interleave(CELL, -1)


def _hidden(truth: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Colours, 0 where they are asked for, and a channel that says where they are not."""
    return truth.masked_fill(asked, 0.0), (~asked).to(truth.dtype)


def _places() -> Tensor:
    """(4 * OCTAVES, 32, 32): sines and cosines of height and width, -pi to pi at the slowest."""
    at = (torch.arange(CELL * SIDE) + 0.5) / (CELL * SIDE) * 2 - 1
    angles = torch.pi * at * 2.0 ** torch.arange(OCTAVES)[:, None]
    waves = torch.cat([angles.sin(), angles.cos()])
    rows = waves[:, :, None].expand(-1, -1, CELL * SIDE)
    return torch.cat([rows, rows.mT])

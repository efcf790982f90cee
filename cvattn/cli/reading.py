"""``cvattn predict`` for networks that read: a line's text and how probable it is."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cvattn.cli.common import CommandError, shown
from cvattn.cli.images import readable
from cvattn.core import Alphabet
from cvattn.data.sequences.line_files import read_line


@dataclass(frozen=True)
class Reading:
    """A reader from a checkpoint, in eval mode, and what it needs to be used.

    Attributes:
        max_length: most tokens of an answer.
        height: of a line, in pixels.
        mean, std: of pixels scaled to 0..1.
    """

    network: nn.Module
    alphabet: Alphabet
    max_length: int
    height: int
    mean: float
    std: float

    def __call__(self, pixels: np.ndarray) -> tuple[str, float]:
        """uint8 (height, W) -> what is written there, and the probability of all of it."""
        _, text, probability = self.answer(*self.inputs(pixels, pixels.shape[1]))
        return text, probability

    def inputs(self, pixels: np.ndarray, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 (height, W), a line in the first ``width`` columns -> what the network takes."""
        image = (torch.from_numpy(pixels).float() / 255 - self.mean) / self.std
        return image[None, None], torch.tensor([width])

    def answer(self, image: torch.Tensor, widths: torch.Tensor) -> tuple[list[int], str, float]:
        """The tokens of the answer, END included, its text, and the probability of all of it."""
        from cvattn.models.decoding import generate

        found = generate(
            self.network,  # type: ignore[arg-type]
            image,
            widths,
            max_length=self.max_length,
        )
        if not math.isfinite(found.log_probs.item()):
            raise CommandError("the network gives values that are not finite: it is of no use", 1)
        tokens = found.tokens[0].tolist()
        return tokens, self.alphabet.decode(tokens), math.exp(found.log_probs.item())


def open_reader(network: nn.Module, path: str) -> Reading:
    """A network as a reader of lines; CommandError where it cannot be used as one."""
    meta = network.meta
    assert isinstance(meta, dict)
    try:
        (mean,), (std,) = meta["mean"], meta["std"]
        return Reading(
            network,
            Alphabet(meta["alphabet"]),
            int(meta["max_length"]),
            int(meta["height"]),
            float(mean),
            float(std),
        )
    except KeyError as error:
        raise CommandError(
            f"{path} holds a {type(network).__name__} that answers to strings, or does not say its "
            f"{error.args[0]}: it reads no images"
        ) from error
    except (TypeError, ValueError) as error:
        raise CommandError(f"{path}: its description cannot be used: {error}") from error


def read_lines(reading: Reading, files: Sequence[Path]) -> int:
    """Print file, text and probability of each; 1 if a file could not be read, else 0."""
    width = max(len(shown(path)) for path in files)
    left = len(files)
    for path, pixels in readable(files, line_reader(reading.height)):
        text, probability = reading(pixels)
        print(f"{shown(path):<{width}}  {shown(text)}  {probability:.2%}")
        left -= 1
    return int(left > 0)


def line_reader(height: int) -> Callable[[Path], np.ndarray]:
    """Reads a file as in training: pixels, uint8 (height, W)."""
    return lambda path: read_line(path, height)

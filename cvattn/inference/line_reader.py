"""A network that reads lines: a line's text and how probable it is."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cvattn.core import Alphabet
from cvattn.data.sequences.line_files import read_line
from cvattn.inference.errors import InferenceError, NotFiniteError


@dataclass(frozen=True)
class LineReader:
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

    def read(self, path: str | os.PathLike[str]) -> np.ndarray:
        """A file's pixels as in training, uint8 (height, W).

        Raises:
            ImageError: as in :func:`cvattn.data.image_files.read_picture`.
        """
        return read_line(Path(path), self.height)

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
            raise NotFiniteError
        tokens = found.tokens[0].tolist()
        return tokens, self.alphabet.decode(tokens), math.exp(found.log_probs.item())


def as_line_reader(network: nn.Module, name: str) -> LineReader:
    """A network of :func:`cvattn.load` as a reader of lines; ``name`` is for messages.

    Raises:
        InferenceError: it cannot be used as one.
    """
    meta = network.meta
    assert isinstance(meta, dict)
    try:
        (mean,), (std,) = meta["mean"], meta["std"]
        return LineReader(
            network,
            Alphabet(meta["alphabet"]),
            int(meta["max_length"]),
            int(meta["height"]),
            float(mean),
            float(std),
        )
    except KeyError as error:
        raise InferenceError(
            f"{name} holds a {type(network).__name__} that answers to strings, or does not say its "
            f"{error.args[0]}: it reads no images"
        ) from error
    except (TypeError, ValueError) as error:
        raise InferenceError(f"{name}: its description cannot be used: {error}") from error

"""What a page is made of, and what is asked for."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from cvattn.cli.explorer.look import Look


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for.

    Attributes:
        checkpoint: its path or name, for messages.
        files: image files and folders; none: images of the network's own data.
        settings: ``data=NAME`` and ``data.KEY=VALUE``.
        count: images to take from data.
        layers: names of blocks; None = all.
    """

    network: nn.Module
    checkpoint: str
    files: list[str]
    settings: list[str]
    count: int
    layers: list[str] | None


@dataclass(frozen=True)
class Content:
    """What the page shows.

    Attributes:
        pictures: (N, H, W, C) uint8, as the network sees them.
        captions: for each its "name", its "label" (None if unknown), "guesses", pairs of answer and
            probability, the likeliest first; of a reader also "characters", its queries.
        failed: whether a file could not be read.
    """

    look: Look
    pictures: np.ndarray
    captions: list[dict[str, Any]]
    failed: bool = False

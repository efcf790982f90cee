"""What a page shows."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cvattn.explorer.classes import Heats
from cvattn.explorer.weights import AllWeights


@dataclass(frozen=True)
class Content:
    """Pictures, what is said of them, and what each position of them attends to.

    Attributes:
        pictures: (N, H, W, C) uint8, C 1 or 3, as the network sees them.
        captions: for each its "name", its "label" (None if unknown), "guesses", pairs of answer and
            probability, the likeliest first; of a reader also "characters", its queries.
        heats: for each picture what its likeliest classes rest on; fewer than its guesses, or none.
    """

    weights: AllWeights
    pictures: np.ndarray
    captions: list[dict[str, Any]]
    heats: list[Heats] = field(default_factory=list)

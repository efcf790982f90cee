"""Networks that make images, and what they need to be used: what all kinds share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from cvattn.core.devices import device_of
from cvattn.inference.errors import InferenceError, NotFiniteError
from cvattn.inference.image_network import ImageNetwork

BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Generator(ImageNetwork):
    """A network from a checkpoint that makes images out of noise, in eval mode.

    Attributes:
        labelled: whether it is told a class.
        way: the class of what says how it makes them: its fields are what can be chosen.
    """

    way: ClassVar[type]

    labelled: bool

    def sample(
        self, count: int, *, classes: Sequence[int] = (), way: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Make images.

        Args:
            count: how many.
            classes: their labels, one after the other and over again; () for all classes in turn.
            way: how they are made, a ``self.way``; None for its defaults.

        Returns:
            pixels, uint8 (count, C, H, W), and their labels, int64 (count,); of a network that is
            told none these are -1.

        Raises:
            InferenceError: classes for a network that is told none, or labels that it does not
                have.
            NotFiniteError: the network is of no use.
        """
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return device_of(self.network)

    def labels(self, count: int, classes: Sequence[int]) -> Tensor:
        """int64 (count,), as :meth:`sample` takes them in turn; -1 of a network that is told none.

        Raises:
            InferenceError: as in :meth:`sample`.
        """
        if not self.labelled:
            if classes:
                raise InferenceError("this network is told no class: it was trained without")
            return torch.full((count,), -1)
        unknown = [label for label in classes if not 0 <= label < len(self.classes)]
        if unknown:
            raise InferenceError(f"labels {unknown}: there are 0 to {len(self.classes) - 1}")
        chosen = torch.tensor(list(classes) or range(len(self.classes)))
        return chosen[torch.arange(count) % len(chosen)]

    def _to_pixels(self, images: Tensor) -> np.ndarray:
        if not images.isfinite().all():
            raise NotFiniteError
        return self.pixels(images).transpose(0, 3, 1, 2)

"""A data set as generated images are compared with it: draws of its images, and their features."""

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from cvattn.quality.distance import Distance, frechet, kernel, note_on
from cvattn.quality.features import FeatureNetwork, Lite0, extract

if TYPE_CHECKING:
    from cvattn.data import DataInfo, ImageDataModule

_SPLIT = "test"


class Distances(NamedTuple):
    """Of the same images: the Fréchet distance and the kernel distance."""

    frechet: Distance
    kernel: Distance


class Reference:
    """``draws`` draws of ``count`` test and training images, and their features when needed.

    Features of an image are computed once and kept: several sets of samples should be judged by one
    reference.

    Args:
        data: its test images are what samples are compared with.
        count: images on each side of a comparison; the number of samples.
        draws: how often the data's images are drawn, each time with other ones: the spread of the
            distances over the draws says what a difference means.
        seed: of the draws and of the noise that is put on images.
        network: of the features; None = :class:`Lite0`.

    Raises:
        ValueError: more images wanted than the data has; as in :class:`Lite0`.
    """

    def __init__(
        self,
        data: "ImageDataModule",
        *,
        count: int,
        draws: int = 3,
        seed: int = 0,
        network: FeatureNetwork | None = None,
    ) -> None:
        data.prepare_data()
        self.data = data
        sizes = {split: len(data.split(split).images) for split in ("train", _SPLIT)}
        most = min(sizes.values())
        if not 2 <= count <= most:
            raise ValueError(
                f"count={count}: expected 2 to {most} images, of which {self.info.name} has "
                f"{sizes['train']} to train and {sizes[_SPLIT]} to test"
            )
        if draws < 1:
            raise ValueError(f"draws={draws} must be at least 1")
        self.count, self.draws, self.seed = count, draws, seed
        self.network = Lite0() if network is None else network
        self._images: dict[str, Tensor] = {}
        self._known: dict[str, Tensor] = {}  # NaN where an image's features are not known yet

    @property
    def info(self) -> "DataInfo":
        """What the data says of itself."""
        return self.data.describe()

    def images(self, split: str) -> Tensor:
        """All of a split's, uint8 (N, C, H, W)."""
        if split not in self._images:
            self._images[split] = self.data.split(split).all_images()
        return self._images[split]

    def drawn(self, split: str, draw: int, *, without: int | None = None) -> Tensor:
        """Positions in the split of ``count`` images, (count,); other ones in each draw.

        Args:
            without: a class, none of whose images are drawn.

        Raises:
            ValueError: without this class there are not so many.
        """
        labels = self.data.split(split).labels
        order = torch.randperm(len(labels), generator=self.generator(split, draw))
        if without is not None:
            order = order[labels[order] != without]
            if len(order) < self.count:
                raise ValueError(
                    f"without {self.info.classes[without]!r} {self.info.name} has {len(order)} "
                    f"images in {split}, fewer than count={self.count}"
                )
        return order[: self.count]

    def features(self, split: str, at: Tensor) -> Tensor:
        """Features (N, D) of the split's images at these positions."""
        images = self.images(split)
        if split not in self._known:
            shape = (len(images), self.network.num_features)
            self._known[split] = torch.full(shape, torch.nan)
        known = self._known[split]
        missing = at[known[at, 0].isnan()].unique()
        known[missing] = extract(self.network, images[missing])
        return known[at]

    def compare(self, features: Callable[[int], Tensor]) -> Distances:
        """How far images are from the test images.

        Args:
            features: for a draw, those of the images, (count, D).
        """
        pairs = [
            (features(draw), self.features(_SPLIT, self.drawn(_SPLIT, draw)))
            for draw in range(self.draws)
        ]

        def told(name: str, values: tuple[float, ...], note: str = "") -> Distance:
            return Distance(
                name=f"{name}-{self.network.name}",
                values=values,
                count=self.count,
                reference_count=self.count,
                reference=_SPLIT,
                weights=self.network.weights,
                size=self.network.size,
                note=note,
            )

        return Distances(
            told(
                "FD",
                tuple(frechet(*pair) for pair in pairs),
                note_on(self.count, self.network.num_features),
            ),
            told("KD", tuple(kernel(*pair, seed=self.seed) for pair in pairs)),
        )

    def generator(self, *what: object) -> torch.Generator:
        """Random numbers for one purpose, the same whenever they are asked for."""
        text = repr((self.seed, *what)).encode()
        number = int.from_bytes(hashlib.sha256(text).digest()[:7])
        return torch.Generator().manual_seed(number)

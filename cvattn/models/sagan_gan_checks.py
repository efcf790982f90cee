"""What SAGAN's networks can be built for, and the maps that they have then."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cvattn.models.unet_checks import check_condition

SMALLEST, LARGEST = 16, 128  # pixels a side
BASES = range(4, 8)  # sides of the map that the generator begins with
FULL_WIDTH = 32  # side up to which all maps have the same width


@dataclass(frozen=True)
class Sizes:
    """The maps of a generator and a discriminator of images of one size.

    Attributes:
        image: (H, W).
        doublings: of the generator's first map, one for each of its blocks.
    """

    image: tuple[int, int]
    doublings: int

    @property
    def base(self) -> tuple[int, int]:
        """(H, W) of the map that the generator begins with."""
        return self.image[0] >> self.doublings, self.image[1] >> self.doublings

    def generated(self) -> list[tuple[int, int]]:
        """(H, W) behind each block of the generator."""
        levels = reversed(range(self.doublings))
        return [(self.image[0] >> level, self.image[1] >> level) for level in levels]

    def judged(self) -> list[tuple[int, int]]:
        """(H, W) behind each block of the discriminator.

        Two that halve and two that do not for images that a generator of three blocks or less
        makes, as Miyato et al.'s for 32x32; for others as many as double in the generator, and one.
        """
        halvings, others = (2, 2) if self.doublings <= 3 else (self.doublings, 1)
        levels = [*range(1, halvings + 1), *[halvings] * others]
        return [(self.image[0] >> level, self.image[1] >> level) for level in levels]

    def shared(self) -> list[int]:
        """Heights of the maps that both networks have behind a block, the largest first."""
        generated = {high for high, _ in self.generated()}
        return [high for high in dict.fromkeys(h for h, _ in self.judged()) if high in generated]

    def blocks_at(self, attention_at: int | None) -> tuple[int, int]:
        """Numbers, from 1, of the generator's and the discriminator's first block with such maps.

        Args:
            attention_at: their height; None = half of the images'.

        Raises:
            ValueError: one of the networks has no such map.
        """
        side = self.image[0] // 2 if attention_at is None else attention_at
        if side not in self.shared():
            raise ValueError(
                f"attention_at={side}: for images of {self.image} (height, width) both networks "
                f"have maps with a side of {' or '.join(map(str, self.shared()))}"
            )
        first, second = (
            [high for high, _ in sizes].index(side) + 1
            for sizes in (self.generated(), self.judged())
        )
        return first, second


def sizes_of(image_size: int | Sequence[int]) -> Sizes:
    """The maps for images of a side, or of (H, W).

    Raises:
        ValueError: no map of 4 to 7 pixels a side is doubled to these.
    """
    sides = [image_size] * 2 if isinstance(image_size, int) else list(image_size)
    if len(sides) != 2:
        raise ValueError(f"image_size={image_size}: expected one side, or (height, width)")
    height, width = sides
    doublings = _doublings(min(sides))
    if doublings is None or max(sides) > LARGEST or max(sides) % 2**doublings:
        near = sorted(_possible(), key=lambda side: abs(side - min(sides)))[:3]
        raise ValueError(
            f"image_size={(height, width)}: a map of {BASES[0]} to {BASES[-1]} pixels a side is "
            f"doubled until it has the images' size, {SMALLEST} to {LARGEST}; squares near it have "
            f"a side of {', '.join(map(str, sorted(near)))}; of other images the longer side is "
            "divisible by what the shorter one's map is multiplied with"
        )
    return Sizes((height, width), doublings)


def width_at(width: int, size: tuple[int, int]) -> int:
    """Channels of maps of a size: ``width`` up to 32 pixels a side, half for each doubling above.

    So a stage above costs at most what the one below does.
    """
    return max(1, width >> max(0, math.ceil(math.log2(max(size) / FULL_WIDTH))))


def check_blocks(numbers: Sequence[int], blocks: int) -> None:
    unknown = [number for number in numbers if number not in range(1, blocks + 1)]
    if unknown or len(set(numbers)) < len(numbers):
        raise ValueError(
            f"attention_after={list(numbers)}: the discriminator's blocks are "
            f"{list(range(1, blocks + 1))}, each of which one attention block can follow"
        )


def check_noise(noise: Tensor, noise_dim: int, labels: Tensor | None, classes: int) -> None:
    """Raise ValueError or TypeError unless this is what a generator takes."""
    if noise.ndim != 2 or noise.shape[1] != noise_dim:
        raise ValueError(f"expected noise (batch, {noise_dim}), got shape {tuple(noise.shape)}")
    if not noise.is_floating_point():
        raise TypeError(f"noise is {noise.dtype}; expected floating point, as torch.randn gives")
    check_condition("labels", labels, noise, wanted=classes > 0)


def _doublings(side: int) -> int | None:
    if not SMALLEST <= side <= LARGEST:
        return None
    exponents = (n for n in range(1, 6) if side % 2**n == 0 and side >> n in BASES)
    return next(exponents, None)


def _possible() -> list[int]:
    return [side for side in range(SMALLEST, LARGEST + 1) if _doublings(side) is not None]

"""Random erasing of a whole batch at once, with a rectangle of its own for every image."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cvattn.data.checks import check_number
from cvattn.data.counter import Stream, uniform


@dataclass(frozen=True)
class RandomErasing:
    """A rectangle of some images is erased (Zhong et al., "Random Erasing", 2017).

    The sides are those of the drawn area and shape in whole pixels, at most the image's own: where
    torchvision draws again if a rectangle does not fit, here it is cut to fit.

    Args:
        probability: share of the images that lose one.
        scale: smallest and largest area, as a share of the image's; uniform in between.
        ratio: smallest and largest height / width; its logarithm is uniform in between.
        fill: colour of the rectangle, per channel in 0..255 (the data set's mean).
    """

    probability: float
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    fill: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        check_number("random_erasing", self.probability, minimum=0, maximum=1)
        for name, (low, high), largest in (("scale", self.scale, 1), ("ratio", self.ratio, 100)):
            check_number(name, low, minimum=1e-4, maximum=largest)
            check_number(name, high, minimum=low, maximum=largest)

    def __call__(self, images: Tensor, index: Tensor, *, seed: int, epoch: int) -> Tensor:
        def drawn(stream: Stream, low: float, high: float) -> Tensor:  # float64 (B,)
            return low + (high - low) * uniform(seed, epoch, index, stream)

        height, width = images.shape[-2:]
        area = height * width * drawn(Stream.ERASE_AREA, *self.scale)
        log_low, log_high = map(math.log, self.ratio)
        ratio = drawn(Stream.ERASE_RATIO, log_low, log_high).exp()
        inside = []
        for stream, size, side in (
            (Stream.ERASE_Y, height, (area * ratio).sqrt()),
            (Stream.ERASE_X, width, (area / ratio).sqrt()),
        ):
            length = side.round().clamp(1, size)
            first = ((size - length + 1) * drawn(stream, 0, 1)).floor()
            place = torch.arange(size, device=images.device)
            inside.append((place >= first[:, None]) & (place < (first + length)[:, None]))
        chosen = drawn(Stream.ERASE, 0, 1) < self.probability
        erased = (chosen[:, None] & inside[0])[:, None, :, None] & inside[1][:, None, None, :]
        fill = torch.tensor(self.fill, dtype=images.dtype, device=images.device)
        return torch.where(erased, fill.view(1, -1, 1, 1), images)

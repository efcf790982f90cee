"""Colour jitter of a whole batch at once, with factors of its own for every image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cvattn.data.checks import check_number
from cvattn.data.counter import Stream, uniform

_GREY = (0.2989, 0.587, 0.114)  # of red, green and blue, as torchvision has them
# At a time: what fits into a processor's cache is three times as fast there.
_PIXELS = 1 << 17


@dataclass(frozen=True)
class ColorJitter:
    """torchvision's ColorJitter, in the fixed order brightness, contrast, saturation, hue.

    Each step is ``torchvision.transforms.v2.functional.adjust_*``, whole pixel values after each,
    and is left out where its argument is 0. Grey images (one channel) have neither saturation nor
    hue: only the first two act.

    Args:
        brightness, contrast, saturation: an image's factor is uniform in 1-x..1+x, and not below 0.
        hue: largest shift, as a share of the whole circle of hues, at most 0.5.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            check_number(name, getattr(self, name), minimum=0, maximum=10)
        check_number("hue", self.hue, minimum=0, maximum=0.5)

    @classmethod
    def of_strength(cls, strength: float) -> "ColorJitter":
        """Of one number: the hue has a quarter of it (Chen et al., "SimCLR", 2020, appendix A)."""
        check_number("color_jitter", strength, minimum=0, maximum=2)
        return cls(strength, strength, strength, strength / 4)

    def __call__(self, images: Tensor, index: Tensor, *, seed: int, epoch: int) -> Tensor:
        if not any((self.brightness, self.contrast, self.saturation, self.hue)):
            return images
        if images.device.type != "cpu":
            return self._jitter(images, index, seed, epoch)
        size = max(1, _PIXELS // images.shape[1:].numel())
        parts = zip(images.split(size), index.split(size), strict=True)
        return torch.cat([self._jitter(some, at, seed, epoch) for some, at in parts])

    def _jitter(self, images: Tensor, index: Tensor, seed: int, epoch: int) -> Tensor:
        def drawn(stream: Stream, low: float, high: float) -> Tensor:  # float64 (B, 1, 1, 1)
            factor = low + (high - low) * uniform(seed, epoch, index, stream)
            return factor.view(-1, 1, 1, 1)

        def factor(stream: Stream, strength: float) -> Tensor:
            return drawn(stream, max(0.0, 1 - strength), 1 + strength)

        pixels = images.float()
        if self.brightness:
            pixels = pixels * factor(Stream.BRIGHTNESS, self.brightness).float()
            pixels = pixels.clamp_(0, 255).floor_()
        if self.contrast:
            # Whole numbers, whose sum is exact: the same whatever else is in the batch.
            mean = _grey(pixels).double().mean((1, 2, 3), keepdim=True)
            pixels = _blend(pixels, mean, factor(Stream.CONTRAST, self.contrast))
        if images.shape[1] == 3:
            if self.saturation:
                share = factor(Stream.SATURATION, self.saturation)
                pixels = _blend(pixels, _grey(pixels), share)
            if self.hue:
                pixels = _turned(pixels, drawn(Stream.HUE, -self.hue, self.hue))
        return pixels.to(torch.uint8)


def _grey(pixels: Tensor) -> Tensor:
    """Whole grey values (B, 1, H, W) of (B, 1 or 3, H, W)."""
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels.split(1, dim=1)
    return (red * _GREY[0]).add_(green * _GREY[1]).add_(blue * _GREY[2]).floor_()


def _blend(pixels: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """``share`` of the pixels and the rest of the other, in whole values 0..255."""
    rest = (other * (1 - share).to(other)).float()
    return (pixels * share.float()).add_(rest).clamp_(0, 255).floor_()


def _turned(pixels: Tensor, shift: Tensor) -> Tensor:
    """Hues turned by a share of the circle, (B, 1, 1, 1); value and chroma stay."""
    red, green, blue = pixels.split(1, dim=1)
    low, value = pixels.aminmax(dim=1, keepdim=True)
    chroma = value - low
    span = chroma.clamp(min=1)  # where there is no chroma the hue means nothing
    # In sixths of the circle, from whichever channel is largest.
    hue = torch.where(value == green, (blue - red) / span + 2, (red - green) / span + 4)
    hue = torch.where(value == red, (green - blue) / span, hue)
    hue = hue.add_(6 * shift.float())
    # Each channel is a trapezoid over the hue, a third of the circle from the next one.
    channels = []
    for start in (5, 3, 1):
        place = (hue + start).remainder_(6)
        height = torch.minimum(place, 4 - place).clamp_(0, 1)
        channels.append(value - chroma * height)
    # To whole values as torchvision's conversion from 0..1 does it.
    return torch.cat(channels, dim=1).mul_(255.999 / 255).floor_()

"""Scans of digits put on lines, a batch at a time."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

HEIGHT = 32  # of a line, in pixels
_PATCH = 40  # width of the picture that a digit is drawn on


def draw_digits(
    scans: Tensor, size: Tensor, degrees: Tensor, down: Tensor, right: Tensor
) -> Tensor:
    """(n, 1, 32, 32), parameters (n,) -> (n, 32, _PATCH): each on black, as high as a line."""
    # Sine and cosine in float64, as in images.augment.Affine: they then round to the same float32
    # whatever else is in the batch.
    angle = degrees * (math.pi / 180)
    # grid_sample's range of -1..1 is the whole scan, which is ``size`` pixels wide here.
    cosine, sine = (
        (2 * part(angle) / size).float()[:, None, None] for part in (torch.cos, torch.sin)
    )
    y = (torch.arange(HEIGHT) - (HEIGHT - 1) / 2)[:, None] - down.float()[:, None, None]
    x = (torch.arange(_PATCH) - _PATCH // 2) - right.float()[:, None, None]
    grid = torch.stack((x * cosine + y * sine, y * cosine - x * sine), dim=-1)
    return F.grid_sample(scans, grid, padding_mode="zeros", align_corners=False)[:, 0]


def lay_out(drawn: Tensor, real: Tensor, centre: Tensor, width: int) -> Tensor:
    """Digits (n, 32, _PATCH), one for each True of ``real`` (B, slots) -> lines (B, 1, 32, width).

    Where two overlap the brighter pixel is seen. ``centre``: the column of a patch's middle.
    """
    batch = len(real)
    # A border takes what lies outside.
    canvas = drawn.new_zeros(batch, HEIGHT, width + 2 * _PATCH)
    number = (real.flatten().cumsum(0) - 1).view(real.shape)
    for slot in range(real.shape[1]):
        lines = real[:, slot].nonzero()[:, 0]
        patches = drawn[number[lines, slot]]
        columns = (centre[lines, slot, None] + _PATCH // 2 + torch.arange(_PATCH))[:, None]
        columns = columns.expand(-1, HEIGHT, -1)
        part = canvas[lines]
        part.scatter_(2, columns, torch.maximum(part.gather(2, columns), patches))
        canvas[lines] = part
    return canvas[:, None, :, _PATCH : _PATCH + width]

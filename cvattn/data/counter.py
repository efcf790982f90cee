"""Random numbers that are a pure function of a counter, for whole tensors at once.

A generator has a state, so what it returns depends on what was drawn before: on the batch size,
on the number of processes, on where a run was resumed. Here the number for an image depends on
``(seed, epoch, stream, image index)`` and on nothing else. The mixing function is splitmix64
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), in the wrapping
int64 arithmetic that torch has on every device.
"""

import hashlib
import math
from enum import IntEnum, unique

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def seed_of(*key: int) -> int:
    """For a generator that has to be seeded: 56 bits that depend on all of the key."""
    return int.from_bytes(hashlib.sha256(" ".join(map(str, key)).encode()).digest()[:7])


@unique
class Stream(IntEnum):
    """One independent sequence for each use, so that crop and flip are not correlated."""

    ORDER = 0
    SPLIT = 1
    EXAMPLES = 2
    FILES = 3
    CLASSES = 4
    CROP_Y = 10
    CROP_X = 11
    FLIP = 12
    CUTOUT_Y = 13
    CUTOUT_X = 14
    RAND_AUGMENT = 15
    TRIVIAL_AUGMENT = 16
    TRANSFORMS = 17
    SHIFT_Y = 20
    SHIFT_X = 21
    ROTATION = 22
    SCALE = 23
    LENGTH = 30
    CHARACTER = 31
    SCAN = 32
    GAP = 33
    NOISE = 34
    PLACE = 35
    SIDE = 36
    TONE = 37
    RADIUS = 40
    ANGLE = 41
    BRIGHTNESS = 50
    CONTRAST = 51
    SATURATION = 52
    HUE = 53
    ERASE = 54
    ERASE_AREA = 55
    ERASE_RATIO = 56
    ERASE_Y = 57
    ERASE_X = 58
    PART_AREA = 60
    PART_RATIO = 61
    PART_Y = 62
    PART_X = 63


def bits(seed: int, epoch: int, index: Tensor, stream: Stream) -> Tensor:
    """64 random bits for each entry of ``index`` (int64, any shape), as int64, on its device."""
    key = 0
    for part in (seed, epoch, int(stream)):
        key = _mix_int((key + part + _GOLDEN) & _MASK)
    return _mix(index * _signed(_GOLDEN) + _signed(key))


def uniform(seed: int, epoch: int, index: Tensor, stream: Stream) -> Tensor:
    """float64 in [0, 1) for each entry of ``index``; 53 random bits."""
    return _shift_right(bits(seed, epoch, index, stream), 11).double() * 2.0**-53


def integers(seed: int, epoch: int, index: Tensor, stream: Stream, *, high: int) -> Tensor:
    """int64 in 0..high-1 for each entry of ``index``, for ``high`` up to 2^31.

    Multiply and shift instead of a remainder; the bias is below ``high`` / 2^32.
    """
    return (_shift_right(bits(seed, epoch, index, stream), 32) * high) >> 32


def normal(seed: int, epoch: int, index: Tensor) -> Tensor:
    """float64 from a standard normal for each entry of ``index`` (Box and Muller, 1958)."""
    radius = (-2.0 * torch.log1p(-uniform(seed, epoch, index, Stream.RADIUS))).sqrt()
    return radius * torch.cos(2.0 * math.pi * uniform(seed, epoch, index, Stream.ANGLE))


def permutation(seed: int, epoch: int, size: int, stream: Stream = Stream.ORDER) -> Tensor:
    """0..size-1 in random order, int64, on the CPU."""
    return bits(seed, epoch, torch.arange(size), stream).argsort(stable=True)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _signed(_FIRST)
    x = (x ^ _shift_right(x, 27)) * _signed(_SECOND)
    return x ^ _shift_right(x, 31)


def _mix_int(x: int) -> int:
    x = ((x ^ (x >> 30)) * _FIRST) & _MASK
    x = ((x ^ (x >> 27)) * _SECOND) & _MASK
    return x ^ (x >> 31)


def _shift_right(x: Tensor, count: int) -> Tensor:
    # Torch shifts int64 arithmetically; the mask removes the copies of the sign bit.
    return (x >> count) & ((1 << (64 - count)) - 1)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x

"""What a U-Net refuses, with what would do."""

from collections.abc import Sequence

import torch
from torch import Tensor


def check_counts(**given: int) -> None:
    for name, count in given.items():
        if count < 1:
            raise ValueError(f"{name}={count} must be at least 1")


def check_levels(multipliers: Sequence[int], attention_at: Sequence[int]) -> None:
    if not multipliers or min(multipliers) < 1:
        raise ValueError(
            f"multipliers={list(multipliers)}: expected one for each level, each at least 1"
        )
    unknown = [level for level in attention_at if level not in range(len(multipliers))]
    if unknown:
        raise ValueError(
            f"attention_at={unknown}: with {len(multipliers)} multipliers the levels are "
            f"{list(range(len(multipliers)))}"
        )


def size_multiple(patch_size: int, levels: int) -> int:
    """What heights and widths have to be divisible by."""
    return patch_size * 2 ** (levels - 1)


def check_divisible(size: tuple[int, int], patch_size: int, levels: int) -> None:
    factor = size_multiple(patch_size, levels)
    if min(size) >= 1 and size[0] % factor == size[1] % factor == 0:
        return
    high, wide = (_nearest(side, factor) for side in size)
    raise ValueError(
        f"images of {tuple(size)} (height, width) have not {levels} levels of patches of "
        f"{patch_size}: both have to be divisible by {factor}. Pad or resize them to a height "
        f"of {high} and a width of {wide}"
    )


def _nearest(side: int, factor: int) -> str:
    below = side // factor * factor
    if below == side > 0:
        return f"{side}"
    return f"{below} or {below + factor}" if below > 0 else f"{factor}"


def check_condition(name: str, given: Tensor | None, images: Tensor, *, wanted: bool) -> None:
    what = "timed=True" if name == "times" else "classes > 0"
    if given is None:
        if wanted:
            raise ValueError(f"{name}: the network was built with {what} and needs them, (batch,)")
        return
    if not wanted:
        raise ValueError(f"{name}: the network takes none; build it with {what}, or leave them out")
    if given.shape != images.shape[:1]:
        raise ValueError(
            f"{name} are {tuple(given.shape)}; expected one for each of the {len(images)} images, "
            f"({len(images)},): expand() repeats one that holds for all"
        )
    if name == "times" and not given.is_floating_point():
        raise TypeError(
            f"times are {given.dtype}; expected floating point from 0 to 1: step n of N is n / N"
        )
    if name == "labels" and given.dtype != torch.int64:
        raise TypeError(f"labels are {given.dtype}; expected torch.int64")

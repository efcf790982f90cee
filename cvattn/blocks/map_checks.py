"""What blocks for feature maps accept: widths that fit their heads, maps and masks that fit."""

import torch
from torch import Tensor, nn

SIDES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}


def fit_widths(
    in_channels: int, qk_channels: int | None, value_channels: int | None, num_heads: int
) -> tuple[int, int]:
    """Channels of q and k, and of v; ValueError unless they fit the heads."""
    qk_origin = value_origin = ""
    if qk_channels is None:
        qk_channels = max(1, in_channels // 8)
        near = max(num_heads, qk_channels // max(1, num_heads) * num_heads)
        qk_origin = f"; it is in_channels // 8, as none was given: qk_channels={near} would do"
    if value_channels is None:
        value_channels = in_channels
        value_origin = "; it is in_channels, as none was given"
    named = {
        "qk_channels": (qk_channels, qk_origin),
        "value_channels": (value_channels, value_origin),
    }
    for name, given in (
        ("in_channels", in_channels),
        ("num_heads", num_heads),
        *((name, width) for name, (width, _) in named.items()),
    ):
        if given < 1:
            raise ValueError(f"{name}={given} must be at least 1")
    for name, (given, origin) in named.items():
        if given % num_heads:
            raise ValueError(f"{name}={given} is not divisible by num_heads={num_heads}{origin}")
    return qk_channels, value_channels


def check_groups(groups: int, channels: int) -> None:
    """Raise ValueError unless the groups of a group norm divide the channels."""
    if groups < 1 or channels % groups:
        raise ValueError(
            f"a group norm of {groups} groups does not divide {channels} channels; "
            f"{near_divisors(channels, groups)} groups do"
        )


def near_divisors(number: int, near: int) -> str:
    """The divisors of a number that are nearest to another, as text."""
    every = [each for each in range(1, number + 1) if number % each == 0]
    return ", ".join(map(str, sorted(sorted(every, key=lambda each: abs(each - near))[:3])))


def refuse_batch_norm(proj: nn.Module) -> None:
    """Raise ValueError if there is a batch norm in it: padding would take part in training."""
    if any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in proj.modules()):
        raise ValueError(
            "the batch norm behind the projection would count the padding in training; batch maps "
            "of one size, use a block without one, or freeze it with .eval()"
        )


def check_map(x: Tensor, mask: Tensor | None, in_channels: int, dimensions: int) -> None:
    """Raise ValueError or TypeError unless the map has these channels, and the mask its sizes."""
    if x.ndim != dimensions + 2 or x.shape[1] != in_channels:
        sides = ", ".join(SIDES[dimensions])
        raise ValueError(
            f"expected a feature map (batch, {in_channels}, {sides}), got shape {tuple(x.shape)}"
        )
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(f"mask is {mask.dtype}; expected bool, True = real and False = padding")
    if mask.shape != (x.shape[0], *x.shape[2:]):
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}; expected {(x.shape[0], *x.shape[2:])}, True at "
            "each real position of a map"
        )

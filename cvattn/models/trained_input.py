"""Images as trained weights expect them, from images as other data normalises them."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from cvattn.models.image_input import channel_constants

Values = float | Sequence[float] | Tensor


class TrainedInput(nn.Module):
    """Images that one mean and standard deviation have normalised, as if another one had.

    ``scale * images + shift``, which changes nothing before :meth:`convert` was called. Checkpoints
    of before it was there come without its values: they were trained on images as they came.

    Args:
        channels: C, of the images.

    Attributes:
        wanted: mean and standard deviation that the weights want, of pixels in 0..1: per channel,
            or one for all. Colour's three are averaged for images of other channels.

    Shape:
        (B, C, H, W) -> (B, C, H, W).
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.wanted: tuple[Values, Values] | None = None
        self.register_buffer("scale", torch.empty(channels, 1, 1))
        self.register_buffer("shift", torch.empty(channels, 1, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Images as they come."""
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.shift)

    @torch.no_grad()
    def convert(self, mean: Values, std: Values) -> None:
        """Say how images come; nothing is converted where nobody knows what is wanted.

        Args:
            mean, std: per channel, or one for all, of pixels in 0..1.

        Raises:
            ValueError: another number of them, or a std that nothing can be divided by.
        """
        if self.wanted is None:
            return
        mean, std = (
            channel_constants(name, given, self.channels)
            for name, given in (("mean", mean), ("std", std))
        )
        wanted_mean, wanted_std = (
            channel_constants(f"wanted {name}", self._of_colour(given), self.channels)
            for name, given in zip(("mean", "std"), self.wanted, strict=True)
        )
        self.scale.copy_((std / wanted_std).to(self.scale.dtype))
        self.shift.copy_(((mean - wanted_mean) / wanted_std).to(self.shift.dtype))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        state_dict.setdefault(f"{prefix}scale", torch.ones_like(self.scale))
        state_dict.setdefault(f"{prefix}shift", torch.zeros_like(self.shift))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _of_colour(self, values: Values) -> Tensor:
        given = torch.as_tensor(values, dtype=torch.float64).flatten()
        return given.mean() if len(given) == 3 != self.channels else given


def wanted_by_run(
    meta: Mapping[str, Any], converted: Mapping[str, Tensor] = MappingProxyType({})
) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation that weights of a run of ours want; None if it does not say.

    Args:
        meta: of its checkpoint.
        converted: the values of a :class:`TrainedInput` that the weights stood behind, by name.
    """
    if not meta.get("mean") or not meta.get("std"):
        return None
    mean, std = (
        torch.tensor(meta[key], dtype=torch.float64)[:, None, None] for key in ("mean", "std")
    )
    scale, shift = (
        converted.get(name, torch.tensor(neutral)).double()
        for name, neutral in (("scale", 1.0), ("shift", 0.0))
    )
    return mean - shift * std / scale, std / scale

"""A network that has learned from images, and what its checkpoint says of them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from cvattn.core.devices import device_of
from cvattn.data.image_files import cut, read_picture
from cvattn.inference.errors import InferenceError
from cvattn.inference.images import read_image
from cvattn.models.making import is_flow, missing_of_a_pair

# Data whose images are cut to shape, never squeezed.
_CUT = tuple(
    f"cvattn.data.{name}"
    for name in ("FolderData", "WebDatasetData", "HubData", "LabelsCSVData", "MasksFolderData")
)


@dataclass(frozen=True, kw_only=True)
class ImageNetwork:
    """A network from a checkpoint, in eval mode, and the images that it has learned from.

    Attributes:
        classes: their names, in the order of the labels.
        mean, std: per channel, of pixels scaled to 0..1.
        image_size: (H, W).
        config: the run's resolved configuration; empty if the checkpoint has none.
        target: what it says of an image, as :class:`cvattn.data.Facts` has it.
    """

    target: ClassVar[str] = "class"

    network: nn.Module
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int]
    channels: int
    config: Mapping[str, Any]

    def normalise(self, pixels: np.ndarray) -> Tensor:
        """uint8 (B, C, H, W) -> what the network takes."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        images = (torch.from_numpy(pixels).float() / 255 - mean) / std
        return images.to(device_of(self.network))

    def pixels(self, images: Tensor) -> np.ndarray:
        """What the network takes -> uint8 (B, H, W, C), as one looks at them."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        scaled = ((images.detach().cpu().float() * std + mean) * 255).round().clamp(0, 255)
        return scaled.to(torch.uint8).permute(0, 2, 3, 1).numpy()

    def read(self, path: str | os.PathLike[str]) -> tuple[np.ndarray, str]:
        """A file's pixels as in training, uint8 (C, H, W); its "W x H" if it was squeezed, or "".

        Raises:
            ImageError: as in :func:`cvattn.data.image_files.read_picture`.
            InferenceError: the network takes channels that no image file has.
        """
        if self.channels not in (1, 3):
            raise InferenceError(
                f"the network takes {self.channels} channels; image files have 1 or 3"
            )
        data = self.config.get("data")
        if isinstance(data, dict) and data.get("_target_") in _CUT:
            # These networks get here what they saw in training.
            return cut(read_picture(path, self.channels), self.image_size), ""
        height, width = self.image_size
        pixels, (h, w) = read_image(path, self.channels, self.image_size)
        return pixels, f"{w} x {h}" if h * width != w * height else ""


def facts_of(network: nn.Module, name: str) -> dict[str, Any]:
    """The arguments of an :class:`ImageNetwork`, out of what the network's checkpoint says.

    Args:
        network: of :func:`open_network`.
        name: for messages.

    Raises:
        InferenceError: something is missing, or cannot be.
    """
    meta, kind = network.meta, type(network).__name__
    assert isinstance(meta, dict)
    try:
        height, width = meta["image_size"]
        facts: dict[str, Any] = {
            "network": network,
            "classes": tuple(str(each) for each in meta["classes"]),
            "mean": tuple(float(value) for value in meta["mean"]),
            "std": tuple(float(value) for value in meta["std"]),
            "image_size": (int(height), int(width)),
            "channels": int(meta["channels"]),
            "config": meta.get("config") or {},
        }
    except KeyError as error:
        raise InferenceError(
            f"{name} holds a {kind} and does not say its {error.args[0]}: it was not saved with "
            "the images that it learned from"
        ) from error
    except (TypeError, ValueError) as error:
        raise InferenceError(f"{name}: its description cannot be used: {error}") from error
    if not len(facts["mean"]) == len(facts["std"]) == facts["channels"] or 0 in facts["std"]:
        raise InferenceError(
            f"{name}: {facts['channels']} channels with mean {facts['mean']} and std {facts['std']}"
        )
    return facts


def makes_images(network: nn.Module) -> bool:
    """Whether it was trained to make images, rather than to say something of them."""
    return is_flow(network) or not missing_of_a_pair(network)


def names_pixels(network: nn.Module) -> bool:
    """Whether it was trained on masks."""
    meta = getattr(network, "meta", None)
    return isinstance(meta, dict) and "mask_values" in meta

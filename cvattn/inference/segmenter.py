"""A network that names every pixel, and what it needs to be used."""

import os
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from cvattn.checkpoint import Own
from cvattn.data.image_files import pixels_of
from cvattn.data.images.mask_files import MaskCode
from cvattn.inference.classifier import Classifier, as_classifier
from cvattn.inference.errors import InferenceError, NotFiniteError
from cvattn.inference.image_network import ImageNetwork, facts_of, names_pixels
from cvattn.inference.network import open_network


@dataclass(frozen=True, kw_only=True)
class Segmenter(ImageNetwork):
    """A network from a checkpoint that names every pixel, in eval mode, and what it needs.

    Attributes:
        values: what stands for each class in mask files.
        void: what stands there for no class, or None.
    """

    values: tuple[int, ...]
    void: int | None

    target: ClassVar[str] = "mask"

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return self.classes

    @property
    def code(self) -> MaskCode:
        """What the values of mask files mean."""
        return MaskCode(self.values, self.void)

    def predict(self, picture: Image.Image) -> np.ndarray:
        """The class of each pixel of a picture of any size, uint8 (H, W).

        Args:
            picture: of mode "RGB" or "L", as the network has channels
                (:func:`cvattn.data.image_files.read_picture`).

        It is scaled so that it just covers ``image_size``, as the images of the training were,
        but not cut; the logits are brought back to its own size.

        Raises:
            InferenceError: a picture that cannot be scaled so.
            NotFiniteError: the network is of no use.
        """
        size = _covering((picture.height, picture.width), self.image_size)
        try:
            scaled = picture.resize(size[::-1], Image.Resampling.BICUBIC)
            images = self.normalise(pixels_of(scaled)[None])
        except (ValueError, MemoryError) as error:
            raise InferenceError(
                f"{picture.width} x {picture.height} pixels cannot be scaled to {size[1]} x "
                f"{size[0]}: {error}"
            ) from error
        with torch.inference_mode():
            logits = self.network(_whole_patches(images, self.network)).float()
        logits = logits[..., : size[0], : size[1]]
        if not logits.isfinite().all():
            raise NotFiniteError
        return _likeliest(logits, (picture.height, picture.width)).cpu().numpy()


def _covering(size: tuple[int, int], image_size: tuple[int, int]) -> tuple[int, int]:
    factor = max(wanted / side for side, wanted in zip(size, image_size, strict=True))
    high, wide = (max(1, round(side * factor)) for side in size)
    return high, wide


def _whole_patches(images: Tensor, network: nn.Module) -> Tensor:
    """With the border repeated until the network can halve it: a U-Net takes whole patches."""
    unit = getattr(network, "size_multiple", 1)
    down, right = (-side % unit for side in images.shape[-2:])
    return F.pad(images, (0, right, 0, down), mode="replicate") if down or right else images


def _likeliest(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The class of each pixel of (1, classes, h, w), uint8 (H, W); a class at a time for memory."""
    best = which = None
    for index, each in enumerate(logits.split(1, dim=1)):
        found = F.interpolate(each, size, mode="bilinear")[0, 0]
        if best is None or which is None:
            best, which = found, torch.zeros(size, dtype=torch.uint8, device=logits.device)
            continue
        which[found > best] = index
        best = torch.maximum(best, found)
    assert which is not None
    return which


def open_segmenter(
    path: str | os.PathLike[str], device: str = "cpu", *, network: Own | None = None
) -> Segmenter:
    """The segmenter of a checkpoint; ``network`` as in :func:`cvattn.load`.

    Raises:
        InferenceError: there is none that can be used.
    """
    return as_segmenter(open_network(path, device, network=network), str(path))


def as_segmenter(network: nn.Module, name: str) -> Segmenter:
    """A network of :func:`open_network` as a segmenter; ``name`` is for messages.

    Raises:
        InferenceError: it was not trained on masks, or its description cannot be used.
    """
    if not names_pixels(network):
        raise InferenceError(
            f"{name} holds a {type(network).__name__} that was not trained on masks; networks that "
            "name every pixel are trained with task=segmentation"
        )
    facts = facts_of(network, name)
    meta = network.meta
    assert isinstance(meta, dict)
    values, void = meta["mask_values"], meta.get("mask_void")
    fit = isinstance(values, list) and all(type(v) is int and 0 <= v <= 255 for v in values)
    if not fit or len(set(values)) != len(facts["classes"]):
        raise InferenceError(
            f"{name}: {len(facts['classes'])} classes and the mask values {values}; expected one "
            "of 0 to 255 for each"
        )
    return Segmenter(**facts, values=tuple(values), void=void)


def as_image_network(network: nn.Module, name: str) -> Classifier | Segmenter:
    """A network of :func:`open_network` that says something of images: of all, or of each pixel.

    Raises:
        InferenceError: it says nothing of images, or cannot be used.
    """
    return as_segmenter(network, name) if names_pixels(network) else as_classifier(network, name)

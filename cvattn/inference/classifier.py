"""An image classifier and what it needs to be used."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cvattn.core.devices import device_of
from cvattn.data.image_files import cut, read_picture
from cvattn.inference.errors import InferenceError, NotFiniteError
from cvattn.inference.images import read_image
from cvattn.inference.network import open_network

Guesses = list[tuple[str, float]]  # class and probability, the likeliest first


@dataclass(frozen=True)
class Classifier:
    """An image classifier from a checkpoint, in eval mode, and what it needs to be used.

    Attributes:
        classes: names of the first outputs.
        outputs: names of all outputs; those without a class are called "output 10", ...
        mean, std: per channel, of pixels scaled to 0..1.
        image_size: (H, W).
        config: the run's resolved configuration; empty if the checkpoint has none.
    """

    network: nn.Module
    classes: tuple[str, ...]
    outputs: tuple[str, ...]
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
        if isinstance(data, dict) and data.get("_target_") == "cvattn.data.FolderData":
            # These networks saw images cut to shape, never squeezed: they get the same here.
            return cut(read_picture(path, self.channels), self.image_size), ""
        height, width = self.image_size
        pixels, (h, w) = read_image(path, self.channels, self.image_size)
        return pixels, f"{w} x {h}" if h * width != w * height else ""

    def predict(self, pixels: np.ndarray, top: int = 3) -> list[Guesses]:
        """uint8 (B, C, H, W) -> for each image the ``top`` classes with their probabilities.

        Raises:
            NotFiniteError: the network is of no use.
        """
        with torch.inference_mode():
            return likeliest_of(self.network(self.normalise(pixels)), self.outputs, top)


def likeliest_of(logits: Tensor, outputs: Sequence[str], top: int) -> list[Guesses]:
    """Logits (B, outputs) -> for each image the ``top`` outputs with their probabilities.

    Raises:
        NotFiniteError: a logit is NaN or infinite.
    """
    if not logits.isfinite().all():
        raise NotFiniteError
    best = logits.cpu().double().softmax(-1).topk(min(top, logits.shape[1]))
    return [
        [(outputs[i], p) for p, i in zip(ps, at, strict=True)]
        for ps, at in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def open_classifier(path: str | os.PathLike[str], device: str = "cpu") -> Classifier:
    """The classifier of a checkpoint.

    Raises:
        InferenceError: there is none that can be used.
    """
    return as_classifier(open_network(path, device), str(path))


def as_classifier(network: nn.Module, name: str) -> Classifier:
    """A network of :func:`open_network` as a classifier; ``name`` is for messages.

    Raises:
        InferenceError: it cannot be used as one.
    """
    meta, kind = network.meta, type(network).__name__
    assert isinstance(meta, dict)
    try:
        height, width = meta["image_size"]
        classifier = Classifier(
            network,
            tuple(str(each) for each in meta["classes"]),
            (),
            tuple(float(value) for value in meta["mean"]),
            tuple(float(value) for value in meta["std"]),
            (int(height), int(width)),
            int(meta["channels"]),
            meta.get("config") or {},
        )
    except KeyError as error:
        raise InferenceError(
            f"{name} holds a {kind} and does not say its {error.args[0]}: it was not saved as an "
            "image classifier"
        ) from error
    except (TypeError, ValueError) as error:
        raise InferenceError(f"{name}: its description cannot be used: {error}") from error
    if not len(classifier.mean) == len(classifier.std) == classifier.channels or (
        0 in classifier.std
    ):
        raise InferenceError(
            f"{name}: {classifier.channels} channels with mean {classifier.mean} and std "
            f"{classifier.std}"
        )
    return _with_all_outputs(classifier, name)


def _with_all_outputs(classifier: Classifier, name: str) -> Classifier:
    size = (classifier.channels, *classifier.image_size)
    example = torch.zeros(1, *size, device=device_of(classifier.network))
    try:
        with torch.inference_mode():
            outputs = classifier.network(example).shape[1]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InferenceError(
            f"{name}: the network does not take its own images: {error}"
        ) from error
    names = classifier.classes
    if outputs < len(names):
        raise InferenceError(f"{name}: {len(names)} classes, but the network has {outputs} outputs")
    names += tuple(f"output {index}" for index in range(len(names), outputs))
    return replace(classifier, outputs=names)

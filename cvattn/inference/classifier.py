"""An image classifier and what it needs to be used."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from cvattn.checkpoint import Own
from cvattn.core.devices import device_of
from cvattn.inference.errors import InferenceError, NotFiniteError
from cvattn.inference.image_network import ImageNetwork, facts_of, makes_images, names_pixels
from cvattn.inference.network import open_network

Guesses = list[tuple[str, float]]  # class and probability, the likeliest first


@dataclass(frozen=True, kw_only=True)
class Classifier(ImageNetwork):
    """An image classifier from a checkpoint, in eval mode, and what it needs to be used.

    Attributes:
        classes: names of the first outputs.
        outputs: names of all outputs; those without a class are called "output 10", ...
    """

    outputs: tuple[str, ...]

    @property
    def several(self) -> bool:
        """Whether an image may have several of the classes, each with a probability of its own."""
        return self.target == "labels"

    def predict(self, pixels: np.ndarray, top: int = 3) -> list[Guesses]:
        """uint8 (B, C, H, W) -> for each image the ``top`` classes with their probabilities.

        Raises:
            NotFiniteError: the network is of no use.
        """
        with torch.inference_mode():
            logits = self.network(self.normalise(pixels))
        return likeliest_of(logits, self.outputs, top, several=self.several)


@dataclass(frozen=True, kw_only=True)
class LabelClassifier(Classifier):
    """As :class:`Classifier`, of a network that says of each label whether an image has it."""

    target: ClassVar[str] = "labels"


def likeliest_of(
    logits: Tensor, outputs: Sequence[str], top: int, *, several: bool = False
) -> list[Guesses]:
    """Logits (B, outputs) -> for each image the ``top`` outputs with their probabilities.

    Args:
        several: each output stands for itself; otherwise one of them is right, and they sum to 1.

    Raises:
        NotFiniteError: a logit is NaN or infinite.
    """
    if not logits.isfinite().all():
        raise NotFiniteError
    logits = logits.cpu().double()
    best = (logits.sigmoid() if several else logits.softmax(-1)).topk(min(top, logits.shape[1]))
    return [
        [(outputs[i], p) for p, i in zip(ps, at, strict=True)]
        for ps, at in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def open_classifier(
    path: str | os.PathLike[str], device: str = "cpu", *, network: Own | None = None
) -> Classifier:
    """The classifier of a checkpoint; ``network`` as in :func:`cvattn.load`.

    Raises:
        InferenceError: there is none that can be used.
    """
    return as_classifier(open_network(path, device, network=network), str(path))


def as_classifier(network: nn.Module, name: str) -> Classifier:
    """A network of :func:`open_network` as a classifier; ``name`` is for messages.

    Raises:
        InferenceError: it cannot be used as one.
    """
    if makes_images(network):
        raise InferenceError(
            f"{name} holds a {type(network).__name__} that makes images and names none; "
            f"python -m cvattn sample {name} makes some, and cvattn judge compares them with others"
        )
    if names_pixels(network):
        raise InferenceError(
            f"{name} holds a {type(network).__name__} that names every pixel, and no whole image; "
            f"python -m cvattn predict {name} IMAGE... writes masks"
        )
    facts = facts_of(network, name)
    meta = network.meta
    assert isinstance(meta, dict)
    kind = LabelClassifier if meta.get("several_labels") else Classifier
    return kind(**facts, outputs=_all_outputs(facts, name))


def _all_outputs(facts: Mapping[str, Any], name: str) -> tuple[str, ...]:
    network, names = facts["network"], facts["classes"]
    example = torch.zeros(1, facts["channels"], *facts["image_size"], device=device_of(network))
    try:
        with torch.inference_mode():
            outputs = network(example).shape[1]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InferenceError(
            f"{name}: the network does not take its own images: {error}"
        ) from error
    if outputs < len(names):
        raise InferenceError(f"{name}: {len(names)} classes, but the network has {outputs} outputs")
    return names + tuple(f"output {index}" for index in range(len(names), outputs))

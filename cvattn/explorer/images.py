"""Images and what a network's attention makes of them: every position attends to every other."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cvattn.core.devices import device_of
from cvattn.explorer.content import Content
from cvattn.explorer.weights import collect
from cvattn.inference import Classifier
from cvattn.inference.classifier import Guesses, likeliest_of

_TOP = 3


def of_pixels(
    classifier: Classifier,
    pixels: np.ndarray,
    captions: list[dict[str, Any]],
    layers: Sequence[str] | None,
) -> Content:
    """Of uint8 (B, C, H, W), with what the classifier takes each image for.

    Raises:
        NotFiniteError: the network is of no use.
        ValueError, MemoryError: as in :func:`collect`.
    """
    for caption, guesses in zip(captions, classifier.predict(pixels, _TOP), strict=True):
        caption["guesses"] = guesses
    weights = collect(classifier.network, classifier.normalise(pixels), layers)
    return Content(weights, np.moveaxis(pixels, 1, -1), captions)


def of_tensors(
    network: nn.Module,
    classifier: Classifier | None,
    images: Tensor,
    captions: list[dict[str, Any]],
    layers: Sequence[str] | None,
) -> Content:
    """Of images (B, C, H, W) as the network takes them.

    Of a network that says nothing of itself, logits (B, classes) are told by their number, and an
    image is shown from its lowest value, black, to its highest; with other than 1 or 3 channels the
    mean of them.

    Raises:
        NotFiniteError: the network is of no use, or the images are not finite.
        ValueError, MemoryError: as in :func:`collect`.
    """
    images = images.to(device_of(network))
    with torch.inference_mode():
        answer = network(images)
    guesses: list[Guesses] = [[] for _ in captions]
    if isinstance(answer, Tensor) and answer.ndim == 2 and answer.is_floating_point():
        numbers = [f"output {index}" for index in range(answer.shape[1])]
        guesses = likeliest_of(answer, classifier.outputs if classifier else numbers, _TOP)
    pictures = classifier.pixels(images) if classifier else _pictures(images)
    for caption, likeliest in zip(captions, guesses, strict=True):
        caption["guesses"] = likeliest
    return Content(collect(network, images, layers), pictures, captions)


def _pictures(images: Tensor) -> np.ndarray:
    values = images.detach().cpu().float()
    if values.shape[1] not in (1, 3):
        values = values.mean(1, keepdim=True)
    low, high = (f(values, (1, 2, 3), keepdim=True) for f in (torch.amin, torch.amax))
    shares = (values - low) / (high - low).clamp_min(1e-12)
    return (shares * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

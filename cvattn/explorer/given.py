"""What ``explore`` was given, as what a network takes and what the page shows of it."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from cvattn.explorer.pictures import (
    Preprocess,
    as_seen,
    kind_of,
    normalisation_of,
    preprocessed,
    read_files,
)
from cvattn.inference import Classifier, InferenceError, Segmenter, as_image_network

Captions = list[dict[str, Any]]


@dataclass(frozen=True)
class Given:
    """Images for a network.

    Attributes:
        inputs: (B, C, H, W), as the network takes them.
        pictures: uint8 (B, H, W, C), C 1 or 3, as one looks at them.
        captions: for each its "name" and its "label", None if unknown.
        outputs: names of the network's outputs, if known.
        several: an image may have several of them.
    """

    inputs: Tensor
    pictures: np.ndarray
    captions: Captions
    outputs: Sequence[str] | None
    several: bool = False


def given_images(
    network: nn.Module,
    source: str,
    images: Any,
    preprocess: Preprocess | None,
    names: Sequence[str] | None,
    labels: Sequence[str] | None,
    count: int,
) -> Given:
    """The images of :func:`cvattn.explore`, which says what they may be.

    Raises:
        InferenceError: none that can be used.
    """
    floats = isinstance(images, Tensor) and images.is_floating_point()
    if isinstance(images, Tensor) and (images.ndim != 4 or not len(images)):
        raise InferenceError(
            f"images of shape {tuple(images.shape)}: expected (B, C, H, W), one image at least"
        )
    if preprocess is not None:
        if floats or images is None:
            raise InferenceError(
                "preprocess makes what the network takes out of pictures: give paths, PIL images "
                f"or uint8 pixels with it, not {kind_of(images)}"
            )
        inputs, files = preprocessed(images, preprocess)
        pictures = as_seen(inputs, normalisation_of(preprocess))
        captions = captions_of(len(inputs), files if names is None else names, labels)
        return Given(inputs, pictures, captions, None)
    # Of a network of ours from a checkpoint; others may have an attribute of that name.
    meta = getattr(network, "meta", None)
    known = isinstance(meta, dict) and {"classes", "mean", "std"} <= meta.keys()
    ours = as_image_network(network, source) if known else None
    # What is said of each pixel is no guess of what an image shows.
    outputs = ours.outputs if isinstance(ours, Classifier) else None
    several = isinstance(ours, Classifier) and ours.several
    if floats:
        pictures = ours.pixels(images) if ours else as_seen(images, None)
        captions = captions_of(len(images), names, labels)
        return Given(images, pictures, captions, outputs, several)
    if ours is None:
        raise InferenceError(
            f"a {source} does not say how its images are prepared: give preprocess=, or images as "
            f"it takes them, float (B, C, H, W), not {kind_of(images)}"
        )
    pixels, captions = _pixels(ours, images, names, labels, count)
    pictures = np.moveaxis(pixels, 1, -1)
    return Given(ours.normalise(pixels), pictures, captions, outputs, several)


def _pixels(
    ours: Classifier | Segmenter,
    images: Any,
    names: Sequence[str] | None,
    labels: Sequence[str] | None,
    count: int,
) -> tuple[np.ndarray, Captions]:
    """For a network of ours: uint8 (B, C, H, W), read and cut as in its training."""
    if images is None:
        # Lightning takes seconds, and files need none of it.
        from cvattn.inference.own_data import choose_data, validation_images

        data, notes = choose_data(ours)
        for note in notes:
            warnings.warn(note, stacklevel=5)
        pixels, names, labels = validation_images(ours, data, count)
    elif isinstance(images, Tensor):
        pixels = images.cpu().numpy()
    else:
        found = [(path, each) for path, (each, _) in read_files(images, ours.read)]
        pixels = np.stack([each for _, each in found])
        names = [path.name for path, _ in found] if names is None else names
    if pixels.dtype != np.uint8:
        raise InferenceError(f"images of {pixels.dtype}: expected pixels as uint8, or float")
    return pixels, captions_of(len(pixels), names, labels)


def captions_of(
    count: int, names: Sequence[str] | None, labels: Sequence[str] | None
) -> list[dict[str, Any]]:
    """For each image its "name", by its place if None is given, and its "label".

    Raises:
        InferenceError: another number of them.
    """
    for what, given in (("names", names), ("labels", labels)):
        if given is not None and len(given) != count:
            raise InferenceError(f"{len(given)} {what} for {count} images")
    return [
        {
            "name": f"image {index}" if names is None else str(names[index]),
            "label": None if labels is None else str(labels[index]),
        }
        for index in range(count)
    ]

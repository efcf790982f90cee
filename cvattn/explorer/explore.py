"""``explore(model, images)``: a page that shows what each position attends to."""

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import cvattn
from cvattn.core.modes import in_eval_mode
from cvattn.cost import count_parameters
from cvattn.data.image_files import ImageError
from cvattn.explorer.content import Content
from cvattn.explorer.images import of_pixels, of_tensors
from cvattn.explorer.lines import Line, of_lines, own_lines
from cvattn.explorer.page import Page
from cvattn.inference import (
    InferenceError,
    LineReader,
    as_classifier,
    as_line_reader,
    find_images,
    open_network,
)
from cvattn.inference.images import read_each
from cvattn.maps import attention_modules
from cvattn.models import Reader

Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Captions = list[dict[str, Any]]


def explore(
    model: nn.Module | str | os.PathLike[str],
    images: Tensor | Sequence[Tensor] | Files | None = None,
    *,
    names: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    count: int = 24,
) -> Page:
    """A page on which every position of an image shows what it attends to.

    Args:
        model: a network with attention blocks, or a checkpoint: its path, or the name of a network
            that comes with the package.
        images: what is shown:

            - None: ``count`` validation images of the data that a checkpoint was trained on;
            - paths of image files and folders, read as in the training of the checkpoint;
            - pixels, uint8 (B, C, H, W), normalised as in its training; for a network that reads
              lines, a list of pixels, uint8 (H, W), each of its own width;
            - float (B, C, H, W), as the network takes them.
        names: of the images; their places, or those of the files, if None.
        labels: what is on each image, if known.
        layers: names of blocks, as in :func:`cvattn.capture_attention`; None = all.
        count: validation images shown.

    Returns:
        The page, which appears in a notebook and is written by ``page.save(path)``.

    Raises:
        InferenceError: a ``ValueError``; the checkpoint or the images cannot be used.
        ValueError: the network has no attention blocks, none of that name, or none on a grid.
        MemoryError: as in :func:`cvattn.capture_attention`.
    """
    if images is None and not (names is None and labels is None):
        raise ValueError("names and labels are of images that are given; there are none")
    if count < 1:
        raise ValueError(f"count={count} must be at least 1")
    network = model if isinstance(model, nn.Module) else open_network(model)
    source = type(network).__name__ if isinstance(model, nn.Module) else str(model)
    if not attention_modules(network):
        raise ValueError(f"{source}: the network has no attention to look at")
    with in_eval_mode(network):
        content = _content(network, source, images, names, labels, layers, count)
    pictures = content.pictures
    facts = (
        *(() if isinstance(model, nn.Module) else (source,)),
        f"{count_parameters(network):,} parameters",
        f"{len(pictures)} images of {pictures.shape[2]} × {pictures.shape[1]}",
        f"cvattn {cvattn.__version__}, torch {torch.__version__.partition('+')[0]}",
    )
    return Page(content, f"What {type(network).__name__} looks at", facts)


def _content(
    network: nn.Module,
    source: str,
    images: Any,
    names: Sequence[str] | None,
    labels: Sequence[str] | None,
    layers: Sequence[str] | None,
    count: int,
) -> Content:
    if isinstance(network, Reader):
        reader = as_line_reader(network, source)
        return of_lines(reader, _lines(reader, images, names, labels, count), layers)
    tensor = images if isinstance(images, Tensor) else None
    if tensor is not None and (tensor.ndim != 4 or not len(tensor)):
        raise InferenceError(
            f"images of shape {tuple(tensor.shape)}: expected (B, C, H, W), one image at least"
        )
    # Of a network of ours from a checkpoint; others may have an attribute of that name.
    meta = getattr(network, "meta", None)
    known = isinstance(meta, dict) and {"classes", "mean", "std"} <= meta.keys()
    if tensor is not None and tensor.is_floating_point():
        classifier = as_classifier(network, source) if known else None
        captions = _captions(len(tensor), names, labels)
        return of_tensors(network, classifier, tensor, captions, layers)
    if not known:
        raise InferenceError(
            f"a {source} does not say how its images are normalised: give images as it takes them, "
            f"float (B, C, H, W), not {_kind(images)}"
        )
    classifier = as_classifier(network, source)
    if images is None:
        # Lightning takes seconds, and files need none of it.
        from cvattn.inference.own_data import choose_data, validation_images

        data, notes = choose_data(classifier)
        for note in notes:
            warnings.warn(note, stacklevel=3)
        pixels, names, labels = validation_images(classifier, data, count)
        captions = _captions(len(pixels), names, labels)
    elif tensor is not None:
        pixels, captions = tensor.cpu().numpy(), _captions(len(tensor), names, labels)
    else:
        found = [(path, pixels) for path, (pixels, _) in _read(images, classifier.read)]
        pixels = np.stack([pixels for _, pixels in found])
        captions = _captions(
            len(found), [path.name for path, _ in found] if names is None else names, labels
        )
    if pixels.dtype != np.uint8:
        raise InferenceError(f"images of {pixels.dtype}: expected pixels as uint8, or float")
    return of_pixels(classifier, pixels, captions, layers)


def _lines(
    reader: LineReader,
    images: Any,
    names: Sequence[str] | None,
    labels: Sequence[str] | None,
    count: int,
) -> list[Line]:
    if images is None:
        return own_lines(reader, count)
    if isinstance(images, Sequence) and images and isinstance(images[0], Tensor):
        lines = [(f"line {index}", line.cpu().numpy()) for index, line in enumerate(images)]
    elif isinstance(images, Tensor):
        raise InferenceError("a reader takes lines of different widths: give a list of them")
    else:
        lines = [(path.name, pixels) for path, pixels in _read(images, reader.read)]
    for _, line in lines:
        if line.dtype != np.uint8 or line.ndim != 2 or line.shape[0] != reader.height:
            raise InferenceError(
                f"a line of {line.dtype} {line.shape}: expected uint8 ({reader.height}, width)"
            )
    captions = _captions(
        len(lines), [name for name, _ in lines] if names is None else names, labels
    )
    return [
        (caption["name"], line, caption["label"])
        for caption, (_, line) in zip(captions, lines, strict=True)
    ]


def _read(images: Files, read: Any) -> list[tuple[Path, Any]]:
    """All of the files, or an error that names the first that cannot be read."""
    paths: Iterable[Any] = [images] if isinstance(images, str | os.PathLike) else images
    if not isinstance(paths, Sequence) or not all(isinstance(p, str | os.PathLike) for p in paths):
        raise InferenceError(f"images: expected paths or tensors, got {_kind(images)}")

    def refuse(path: Path, error: ImageError) -> None:
        raise InferenceError(f"{path}: {error}") from error

    found = list(read_each(find_images(paths, warnings.warn), read, refuse))
    if not found:
        raise InferenceError("no images: name one file at least")
    return found


def _captions(
    count: int, names: Sequence[str] | None, labels: Sequence[str] | None
) -> list[dict[str, Any]]:
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


def _kind(images: Any) -> str:
    return str(images.dtype) if isinstance(images, Tensor) else type(images).__name__

"""CIFAR-10 and CIFAR-100 as parquet files of encoded images."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cvattn.data.cache import cached
from cvattn.data.checks import DataError
from cvattn.data.images.base import ImageSet
from cvattn.data.images.cifar_facts import Cifar

_IMAGES = ("img", "image")  # the column's name has changed over the years


def read_parquets(cifar: Cifar, files: Mapping[str, tuple[Path, ...]]) -> dict[str, ImageSet]:
    """All images and labels of the parts of train and test, decoded once, then from the cache.

    Raises:
        DataError: naming the damaged file.
    """
    import PIL

    labels = {
        split: np.concatenate([labels_of(cifar, path) for path in paths])
        for split, paths in files.items()
    }
    for split, paths in files.items():
        check_labels(cifar, split, paths, labels[split])

    def make() -> dict[str, np.ndarray]:
        return {
            split: np.concatenate([_decode_parquet(cifar, path) for path in paths])
            for split, paths in files.items()
        }

    shapes = {split: (cifar.counts[split], 3, 32, 32) for split in files}
    every = [path for paths in files.values() for path in paths]
    pixels, _ = cached(cifar.name, every, f"Pillow {PIL.__version__}", shapes, make)
    return {
        split: ImageSet(torch.from_numpy(pixels[split]), torch.from_numpy(labels[split]))
        for split in files
    }


def _decode_parquet(cifar: Cifar, path: Path) -> np.ndarray:
    """All images of a parquet file, uint8 (N, 3, 32, 32)."""
    encoded = image_bytes(cifar, path).to_pylist()
    pixels = np.empty((len(encoded), 32, 32, 3), dtype=np.uint8)
    for row, data in enumerate(encoded):
        pixels[row] = _decode(path, row, data)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def image_bytes(cifar: Cifar, path: Path) -> Any:
    """The column of encoded images, an Arrow array of binary (N,).

    Raises:
        DataError: there is no such column, or it has no bytes.
    """
    names = [name for name in _IMAGES if name in schema_of(path).names]
    column = column_of(cifar, path, names[0] if len(names) == 1 else " or ".join(_IMAGES))
    try:
        column = column.combine_chunks().field("bytes")
    except (KeyError, AttributeError) as error:
        raise DataError(
            f"{path} has no image bytes in its column {names[0]!r}: {column.type}"
        ) from error
    return column


def _decode(path: Path, row: int, data: bytes | None) -> np.ndarray:
    """Pixels of one encoded image, uint8 (32, 32, 3).

    Pillow takes 70 microseconds for each, most of them in its Python part, so threads don't help;
    torchvision's decoder is twice as fast, and about to be removed from it.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data or b""), formats=("PNG", "JPEG")) as image:
            size = image.size
            # Through bytes: numpy's way into an image costs as much as the decoding.
            pixels = (image.convert("RGB") if image.mode != "RGB" else image).tobytes()
    except Exception as error:  # of damaged files decoders raise nearly anything
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} is damaged: image {row} cannot be decoded: {reason}") from error
    if size != (32, 32):
        raise DataError(f"{path}: image {row} has {size} pixels (W, H), expected (32, 32)")
    return np.frombuffer(pixels, np.uint8).reshape(32, 32, 3)


def labels_of(cifar: Cifar, path: Path) -> np.ndarray:
    """int64 (N,)."""
    # Copied: what Arrow hands out is read only, and torch wants to own its memory.
    return np.asarray(column_of(cifar, path, cifar.label_column)).astype(np.int64)


def check_labels(cifar: Cifar, split: str, paths: Sequence[Path], labels: np.ndarray) -> None:
    """Raise DataError if the labels of all parts are not the published ones, as far as known."""
    count = cifar.counts[split]
    held = f"{paths[0]} holds" if len(paths) == 1 else f"{paths[0]} and the other parts hold"
    if len(labels) != count:
        raise DataError(f"{held} {len(labels)} images, expected {count}")
    if cifar.label_hashes is not None:
        found = hashlib.sha256(labels.astype(np.uint8).tobytes()).hexdigest()
        if found != cifar.label_hashes[split]:
            raise DataError(f"{held} other labels than {cifar.title}'s, or in another order")
        return
    classes = len(cifar.classes)
    each = np.bincount(np.clip(labels, 0, classes), minlength=classes)
    if each.tolist() != [count // classes] * classes:
        raise DataError(
            f"{held} other labels than {cifar.title}'s, which has {count // classes} images "
            f"of each of {classes} classes"
        )


def column_of(cifar: Cifar, path: Path, name: str) -> Any:
    """A column of the file; DataError if it has none of that name, or is damaged."""
    import pyarrow
    from pyarrow import parquet

    if name not in (names := schema_of(path).names):
        there = ", ".join(map(repr, names))
        raise DataError(f"{path} has no column {name!r}; is it {cifar.title}? It has {there}")
    try:
        return parquet.read_table(path, columns=[name]).column(name)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is truncated or damaged: {error}") from error


def schema_of(path: Path) -> Any:
    """The file's Arrow schema; DataError if it is damaged."""
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is truncated or damaged: {error}") from error

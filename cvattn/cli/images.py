"""Image files of any kind, as a network takes them."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from cvattn.cli.common import CommandError, Trained, shown
from cvattn.data.image_files import (
    ImageError,
    cut,
    image_files,
    left_out,
    pixels_of,
    read_picture,
)

T = TypeVar("T")


def find_images(paths: Iterable[str]) -> list[Path]:
    """The files, and of each folder every image file below it, sorted; a folder without is kept.

    Raises:
        CommandError: a folder cannot be read.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        try:
            inside = image_files(path)
        except OSError as error:
            raise CommandError(f"{error.filename} cannot be read: {error.strerror}") from error
        if inside.left:
            print(f"note: {shown(left_out(inside.left))}", file=sys.stderr)
        found += inside.paths or [path]
    return found


def readable(paths: Iterable[Path], read: Callable[[Path], T]) -> Iterator[tuple[Path, T]]:
    """Each file that ``read`` can read, and what it gives; of the others, a line says why not."""
    for path in paths:
        try:
            yield path, read(path)
        except ImageError as error:
            print(f"error: {shown(path)}: {shown(str(error))}", file=sys.stderr)


def read_image(
    path: str | os.PathLike[str], channels: int, image_size: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """Pixels, uint8 (channels, H, W), and the size (H, W) that the upright image had.

    The whole image, as :func:`read_picture` reads it, resized with anti-aliasing (bilinear),
    squeezed if its shape is another.

    Raises:
        ImageError: as in :func:`read_picture`.
    """
    picture = read_picture(path, channels)
    size = (picture.height, picture.width)
    height, width = image_size
    if size != image_size:
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return pixels_of(picture), size


def image_reader(trained: Trained) -> Callable[[Path], tuple[np.ndarray, str]]:
    """Reads a file as in training: pixels, uint8 (C, H, W), and if it was squeezed, its size.

    Raises:
        CommandError: the network takes channels that no image file has.
    """
    if trained.channels not in (1, 3):
        raise CommandError(
            f"the network takes {trained.channels} channels; image files have 1 or 3"
        )
    height, width = trained.image_size
    data = trained.config.get("data")
    if isinstance(data, dict) and data.get("_target_") == "cvattn.data.FolderData":
        # These networks saw images cut to shape, never squeezed: they get the same here.
        return lambda path: (cut(read_picture(path, trained.channels), trained.image_size), "")

    def read_whole(path: Path) -> tuple[np.ndarray, str]:
        pixels, (h, w) = read_image(path, trained.channels, trained.image_size)
        return pixels, f"{w} x {h}" if h * width != w * height else ""

    return read_whole

"""Image files as a network takes them."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from cvattn.data.image_files import ImageError, image_files, left_out, pixels_of, read_picture
from cvattn.inference.errors import InferenceError

T = TypeVar("T")


def find_images(paths: Iterable[str | os.PathLike[str]], tell: Callable[[str], None]) -> list[Path]:
    """The files, and of each folder every image file below it, sorted; a folder without is kept.

    Args:
        paths: of files and folders.
        tell: gets a sentence for each folder with files that are no images.

    Raises:
        InferenceError: a folder cannot be read.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        try:
            inside = image_files(path)
        except OSError as error:
            raise InferenceError(f"{error.filename} cannot be read: {error.strerror}") from error
        if inside.left:
            tell(left_out(inside.left))
        found += inside.paths or [path]
    return found


def read_each(
    paths: Iterable[Path], read: Callable[[Path], T], unreadable: Callable[[Path, ImageError], None]
) -> Iterator[tuple[Path, T]]:
    """Each file that ``read`` can read, and what it gives; the others go to ``unreadable``."""
    for path in paths:
        try:
            yield path, read(path)
        except ImageError as error:
            unreadable(path, error)


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

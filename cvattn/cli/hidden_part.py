"""Which part of an image is hidden, to be made anew: by name, or as a file."""

from typing import Any

import numpy as np

from cvattn.cli.common import CommandError, shown
from cvattn.data.image_files import ImageError, read_picture

PARTS = ("left", "right", "top", "bottom", "centre")


def known_part(mask: str, size: tuple[int, int]) -> np.ndarray:
    """bool (H, W), True for what stays.

    Args:
        mask: of ``PARTS`` the hidden one; or an image file of that size, white where it is hidden.
        size: (H, W).

    Raises:
        CommandError: no such file, of another size, or one that hides nothing or all.
    """
    height, width = size
    if mask in PARTS:
        y, x = height // 2, width // 2
        hidden: dict[str, Any] = {
            "left": np.s_[:, :x],
            "right": np.s_[:, x:],
            "top": np.s_[:y],
            "bottom": np.s_[y:],
            "centre": np.s_[y // 2 : height - y // 2, x // 2 : width - x // 2],
        }
        known = np.ones(size, bool)
        known[hidden[mask]] = False
        return known
    try:
        picture = read_picture(mask, 1)
    except ImageError as error:
        raise CommandError(
            f"--mask {shown(mask)}: {error}; expected {', '.join(PARTS)}, or an image file"
        ) from error
    if (picture.height, picture.width) != size:
        raise CommandError(
            f"--mask {shown(mask)} is {picture.width} x {picture.height}; the network's images are "
            f"{width} x {height}"
        )
    known = np.asarray(picture) < 128
    if known.all() or not known.any():
        raise CommandError(
            f"--mask {shown(mask)} is {'black' if known.all() else 'white'} throughout: white is "
            "made anew, black stays"
        )
    return known

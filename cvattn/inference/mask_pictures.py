"""Masks to look at: their colours, and images below them."""

import numpy as np
from PIL import Image


def colour_table() -> np.ndarray:
    """Of the values 0 to 255, uint8 (256, 3): those of Pascal VOC, 0 is black.

    Bit 3 k + c of a value is bit 7 - k of channel c (Everingham et al., the challenge's devkit).
    """
    table = np.zeros((256, 3), dtype=np.uint8)
    values = np.arange(256)
    for bit in range(8):
        table[:, bit % 3] |= ((values >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    return table


def mask_picture(values: np.ndarray) -> Image.Image:
    """A palette picture with these values, uint8 (H, W), as its indices."""
    picture = Image.fromarray(values)
    picture.putpalette(colour_table().tobytes())
    return picture


def mask_on_image(pixels: np.ndarray, values: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Half the image and half the colour of each pixel's value, uint8 (H, W, 3).

    Args:
        pixels: uint8 (H, W, C), C 1 or 3.
        values: of a mask file, uint8 (H, W).
        real: bool (H, W), where a pixel has a class; elsewhere the image stays.
    """
    image = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    mixed = (image.astype(np.uint16) + colour_table()[values]) // 2
    return np.where(real[..., None], mixed, image).astype(np.uint8)

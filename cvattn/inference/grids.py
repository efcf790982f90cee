"""Many small images in one picture."""

import numpy as np
from PIL import Image

_GAP = 2  # pixels of the images


def image_grid(pixels: np.ndarray, columns: int, *, side: int = 64) -> Image.Image:
    """Images in rows, enlarged without smoothing.

    Args:
        pixels: uint8 (N, C, H, W), of 1 or 3 channels.
        columns: images in a row.
        side: pixels that the longer side of an image has at least in the picture.
    """
    count, channels, height, width = pixels.shape
    rows = -(-count // columns)
    sheet = np.full(
        (rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, channels), 255, np.uint8
    )
    for place, image in enumerate(pixels):
        top = _GAP + place // columns * (height + _GAP)
        left = _GAP + place % columns * (width + _GAP)
        sheet[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    picture = Image.fromarray(sheet if channels == 3 else sheet[..., 0])
    scale = max(1, -(-side // max(height, width)))
    return picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.NEAREST)

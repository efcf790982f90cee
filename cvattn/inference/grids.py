"""Many small images in one picture."""

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid


def image_grid(pixels: np.ndarray, columns: int, *, side: int = 64) -> Image.Image:
    """Images in rows, enlarged without smoothing.

    Args:
        pixels: uint8 (N, C, H, W), of 1 or 3 channels.
        columns: images in a row.
        side: pixels that the longer side of an image has at least in the picture.
    """
    images = torch.from_numpy(np.ascontiguousarray(pixels))
    picture = to_pil_image(make_grid(images, nrow=columns, pad_value=255))
    scale = max(1, -(-side // max(images.shape[-2:])))
    return picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.NEAREST)

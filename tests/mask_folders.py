"""A folder of images and masks as people have them, for tests of more than one package."""

import numpy as np
from PIL import Image

CLASSES = ["no", "yes"]
SIZE = (17, 23)  # (H, W) of the files


def draw_masks(root, *, train=12, test=5):
    """Grey noise with a bright rectangle, which a mask of 0 and 255 marks; below ``root``."""
    for part, count in (("train", train), ("test", test)):
        for number in range(count):
            generator = np.random.default_rng([count, number])
            top, left = generator.integers(0, 8, 2)
            mask = np.zeros(SIZE, np.uint8)
            mask[top : top + 8, left : left + 11] = 255
            image = generator.integers(0, 100, (*SIZE, 3)) + mask[..., None] // 2
            for kind, pixels, suffix in (("images", image, "jpg"), ("masks", mask, "png")):
                folder = root / part / kind
                folder.mkdir(parents=True, exist_ok=True)
                picture = Image.fromarray(pixels.astype(np.uint8))
                picture.save(folder / f"{number:02}.{suffix}")
    return root

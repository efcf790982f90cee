"""The picture of a classifier's attention at the end of a run."""

import numpy as np
import pytest
import torch
from PIL import Image

from cvattn import SAGANClassifier
from cvattn.harness.reporting.pictures import draw_attention


@pytest.mark.parametrize("channels", [1, 3])
def test_images_have_the_colours_of_the_data(tmp_path, channels):
    network = SAGANClassifier(3, in_channels=channels, image_size=(28, 28), widths=(4, 8, 5)).eval()
    assert draw_attention(
        network,
        torch.zeros(2, channels, 28, 28),
        [0, 2],
        ["bag", "coat", "dress"],
        tmp_path / "attention.png",
        to_picture=lambda images: (
            np.array((90, 0, 0)[:channels], np.uint8)
            + np.zeros((len(images), 28, 28, channels), np.uint8)
        ),
    )
    pixels = np.asarray(Image.open(tmp_path / "attention.png").convert("RGB"))
    expected = (90, 90, 90) if channels == 1 else (90, 0, 0)
    # Of the two images in the first row; what is written above them has other colours.
    assert (abs(pixels.astype(int) - expected) <= 2).all(-1).mean() > 0.1

"""Checkpoints of small networks; see ``small_networks``."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_networks import DIGITS, READER, READER_META, SAGAN, VIT, write
from torch import nn

from cvattn import SAGANClassifier, VisionTransformer, checkpoint
from cvattn.data import DigitsData
from cvattn.models import Reader


@pytest.fixture(scope="session")
def sagan(tmp_path_factory) -> tuple[Path, nn.Module]:
    """A run's checkpoint, on digits, and its network."""
    path = tmp_path_factory.mktemp("run") / "checkpoints" / "last.ckpt"
    images, _, _ = DigitsData().example_images(61, "train")
    # Some in colours, or the batch norms would blow up the colours of a photograph.
    images[::5] = torch.randn(images[::5].shape, generator=torch.Generator().manual_seed(8))
    return path, write(path, SAGANClassifier, SAGAN, DIGITS, images)


@pytest.fixture(scope="session")
def vit_7x13(tmp_path_factory) -> tuple[Path, nn.Module]:
    """A grey ViT for images of 7 x 13 pixels that are not square, three classes, four outputs."""
    path = tmp_path_factory.mktemp("vit") / "vit.ckpt"
    args = {**VIT, "num_classes": 4, "in_channels": 1, "image_size": [7, 13], "patch_size": 1}
    meta = {"classes": ["a cat", "dog", "[b]eel"], "mean": [0.4], "std": [0.25]}
    meta |= {"image_size": [7, 13], "channels": 1}
    return path, write(path, VisionTransformer, args, meta)


@pytest.fixture
def reader(tmp_path) -> tuple[Path, nn.Module]:
    """A reader of three characters, with random weights."""
    torch.manual_seed(11)
    network = Reader(**READER).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    path = tmp_path / "reader.ckpt"
    checkpoint.save(path, network, args=READER, meta=READER_META)
    return path, network


@pytest.fixture
def lines(tmp_path) -> list[tuple[Path, np.ndarray]]:
    """Images of lines, 32 pixels high and 9, 40 and 71 wide."""
    found = []
    for i, width in enumerate((9, 40, 71)):
        pixels = np.random.default_rng(i).integers(0, 256, (32, width), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        found.append((tmp_path / f"{i}.png", pixels))
    return found

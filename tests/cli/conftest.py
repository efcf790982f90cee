"""Checkpoints of small networks; see ``small_networks``."""

from pathlib import Path

import pytest
import torch
from small_networks import DIGITS, SAGAN, VIT, write
from torch import nn

from cvattn import SAGANClassifier, VisionTransformer
from cvattn.data import DigitsData


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

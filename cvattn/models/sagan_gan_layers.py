"""What SAGAN's networks are made of: residual blocks, class-conditional norms, first values."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from cvattn.blocks import SelfAttention2d
from cvattn.core.initial_values import reset_with
from cvattn.models.controls import BLOCKS, ConvolutionControl, frozen_biggan_attention

Attention = Literal["biggan", "common", "none", "frozen", "convolution"]
Upsampling = Literal["nearest", "bilinear"]
Init = Literal["orthogonal", "xavier"]

_DRAW: dict[str, Callable[[Tensor], Tensor]] = {
    "orthogonal": nn.init.orthogonal_,
    "xavier": nn.init.xavier_uniform_,
}
_WITH_WEIGHTS = (nn.Conv2d, nn.Linear, nn.Embedding)


class ClassBatchNorm(nn.Module):
    """Batch norm whose gain and bias are a class's: ``(1 + gain(label)) * norm(x) + bias(label)``.

    Dumoulin et al., "A Learned Representation For Artistic Style" (2017); in GANs Miyato and
    Koyama, "cGANs with Projection Discriminator" (2018).

    Args:
        channels: channels C of the map.
        classes: labels are 0 to ``classes - 1``.

    Shape:
        x (B, C, H, W), labels (B,) int64 -> (B, C, H, W).
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain = nn.Embedding(classes, channels)
        self.bias = nn.Embedding(classes, channels)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        gain, bias = (each(labels)[:, :, None, None] for each in (self.gain, self.bias))
        return torch.addcmul(bias, 1 + gain, self.norm(x))


class GeneratorBlock(nn.Module):
    """Doubles a map: ``up(shortcut(x)) + conv2(ReLU(norm2(conv1(up(ReLU(norm1(x)))))))``.

    Convolutions are 3x3, the shortcut's is 1x1. Others' code runs it behind ``up``, at four times
    the cost; the two commute, as ``up`` gives weighted means of positions.

    Args:
        in_channels, out_channels: of the maps.
        classes: of the norms (:class:`ClassBatchNorm`); 0 = plain batch norms.
        upsampling: what ``up`` is.

    Shape:
        x (B, in_channels, H, W), labels (B,) or None -> (B, out_channels, 2 H, 2 W).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        classes: int = 0,
        upsampling: Upsampling = "nearest",
    ) -> None:
        super().__init__()
        self.upsampling = upsampling
        self.norm1 = batch_norm(in_channels, classes)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = batch_norm(out_channels, classes)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        told = () if labels is None else (labels,)
        h = self.conv1(self._double(F.relu(self.norm1(x, *told))))
        h = self.conv2(F.relu(self.norm2(h, *told)))
        return h + self._double(self.shortcut(x))

    def _double(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode=self.upsampling)


class DiscriminatorBlock(nn.Module):
    """``shortcut(pool(x)) + pool(conv2(ReLU(conv1(ReLU(x)))))``; images skip the first ReLU.

    Convolutions are 3x3; the shortcut is a 1x1 convolution where the map is halved or widened,
    else the identity. Released codes run it before the pooling, at four times the cost, except in
    the first block; the two commute.

    Args:
        in_channels, out_channels: of the maps.
        halve: average-pool by 2; heights and widths are even then.
        first: the input is an image, not what a convolution gave.
        rectified: the shortcut takes ReLU(x), too.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, H, W), or H / 2, W / 2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        halve: bool = False,
        first: bool = False,
        rectified: bool = False,
    ) -> None:
        super().__init__()
        self.halve = halve
        self.first = first
        self.rectified = rectified
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut: nn.Module = nn.Identity()
        if halve or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.first else F.relu(x)
        x = h if self.rectified else x
        h = self.conv2(F.relu(self.conv1(h)))
        if not self.halve:
            return h + self.shortcut(x)
        return F.avg_pool2d(h, 2) + self.shortcut(F.avg_pool2d(x, 2))


def batch_norm(channels: int, classes: int) -> nn.Module:
    return ClassBatchNorm(channels, classes) if classes else nn.BatchNorm2d(channels)


def attention_block(attention: Attention, channels: int, size: tuple[int, int]) -> nn.Module:
    """The block of a name for maps of (H, W), its convolutions without spectral norm."""
    if attention == "frozen":
        return frozen_biggan_attention(channels)
    if attention == "convolution":
        keys = math.prod(-(-side // 2) for side in size)
        return ConvolutionControl(channels, positions=math.prod(size), pooled_keys=keys)
    if attention == "biggan":
        # Spectral norms are for the whole network, or not: initialise() brings them.
        return SelfAttention2d.biggan(channels, spectral_norm=False)
    return BLOCKS[attention](channels)


def initialise(
    network: nn.Module, init: Init, *, spectral_norm: bool, embeddings_too: bool = True
) -> None:
    """Draw all weights of convolutions, linear layers and embeddings; biases are 0.

    Args:
        init: how weights are drawn, now and by ``reset_parameters``.
        spectral_norm: put them under ``torch.nn.utils.parametrizations.spectral_norm``, with one
            step of the power iteration whenever a weight is used in training.
        embeddings_too: whether that holds for embeddings.
    """
    for layer in [each for each in network.modules() if isinstance(each, _WITH_WEIGHTS)]:
        fill = partial(_fill, _DRAW[init])
        fill(layer)
        if spectral_norm and (embeddings_too or not isinstance(layer, nn.Embedding)):
            parametrizations.spectral_norm(layer)
        reset_with(layer, fill)


@torch.no_grad()
def _fill(draw: Callable[[Tensor], Tensor], layer: Any) -> None:
    normalised = parametrize.is_parametrized(layer, "weight")
    weight = layer.parametrizations.weight.original if normalised else layer.weight
    draw(weight)
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)
    if normalised:
        # Its directions have to be those of the weight that was drawn.
        fresh = nn.Module()
        fresh.weight = nn.Parameter(weight.detach().clone())
        parametrizations.spectral_norm(fresh)
        directions = fresh.get_submodule("parametrizations.weight.0").state_dict()
        layer.get_submodule("parametrizations.weight.0").load_state_dict(directions)

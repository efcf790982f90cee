"""A fully convolutional network for segmentation, with a head that looks near or far."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from cvattn.models.controls import WideConvolution, unet_attention
from cvattn.models.image_input import check_images
from cvattn.models.named_attention import insert_named
from cvattn.models.timm_cnn import TimmCNN, check_name
from cvattn.models.timm_features import take_features, timm_features
from cvattn.models.trained_input import TrainedInput, Values

Head = Literal["fcn", "attention", "dilated"]
_FILTER = 7  # side of the filters of "dilated"


class SegmentationNetwork(nn.Module):
    """A class for every pixel: a CNN of timm up to a stride, and a head on its last map.

    ``encoder``; ``near``, a 3x3 convolution to ``width`` channels; ``far``, what the head is named
    for; ``mixed``, a 3x3 convolution; ``head``, a 1x1 convolution to the classes, whose logits are
    brought to the image's size by bilinear interpolation. The convolutions have a batch norm and a
    ReLU. This is the FCN head of mmsegmentation, and, with a block between its two convolutions,
    the non-local one (Long et al., "Fully Convolutional Networks for Semantic Segmentation", 2015;
    Wang et al., "Non-local Neural Networks", 2018); the block here has the form of U-Nets, which
    begins as the identity.

    No layer but the block looks at a whole map: batch norms alone, so that what a pixel is told of
    lies within the receptive field.

    Args:
        num_classes: number of classes.
        in_channels: of the images.
        image_size: (H, W) of most images; at this size "dilated" costs what "attention" does. Any
            size works.
        encoder: a CNN as in ``timm.list_models()``.
        stride: its last map is so many times smaller than the image.
        width: channels of the head.
        head: "fcn", nothing beside the convolutions; "attention" (:meth:`SelfAttention2d.unet
            <cvattn.SelfAttention2d.unet>`); or "dilated"
            (:class:`cvattn.models.controls.WideConvolution`), whose 7x7 taps reach over three
            quarters of the map's longer side, each way.
        attention: attention in the encoder, too, as in :class:`cvattn.models.TimmCNN`.
        pretrained: weights of the encoder, as in :class:`cvattn.models.TimmCNN`, which
            :meth:`load_pretrained` takes: False = none, True = timm's, or a file or package of a
            classifier's.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes, H, W).

    Raises:
        ValueError: an encoder that timm does not have, or not with such a map; unknown names.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        image_size: tuple[int, int] = (128, 128),
        encoder: str = "resnet10t",
        stride: int = 4,
        width: int = 64,
        head: Head = "attention",
        attention: Mapping[str, Any] | None = None,
        pretrained: bool | str = False,
    ) -> None:
        super().__init__()
        if head not in get_args(Head):
            raise ValueError(f"head={head!r}; expected one of {get_args(Head)}")
        if num_classes < 2 or width < 1:
            raise ValueError(f"num_classes={num_classes} must be 2 or more, width={width} positive")
        check_name(encoder, weights=pretrained is True)
        self.name = encoder
        self.pretrained = pretrained
        self.in_channels = in_channels
        self.out_channels = num_classes
        self.trained_input = None if pretrained is False else TrainedInput(in_channels)
        self.encoder, channels = timm_features(encoder, in_channels, stride)
        if attention is not None:
            insert_named(self.encoder, attention)
        map_size = tuple(-(-side // stride) for side in image_size)
        self.near = _convolution(channels, width)
        self.far = _far(head, width, map_size)
        self.mixed = _convolution(width, width)
        self.head = nn.Conv2d(width, num_classes, 1)

    def load_pretrained(self) -> str | None:
        """Give the encoder the weights that ``pretrained`` names, if any; the head keeps its own.

        Call this once before training (the harness does). Attention blocks in the encoder keep
        theirs.

        Returns:
            Which weights these are, in words.

        Raises:
            ValueError: weights that cannot be had or do not fit, and what to do.
        """
        if self.trained_input is None:
            return None
        whole = TimmCNN(self.name, 2, in_channels=self.in_channels, pretrained=self.pretrained)
        what = whole.load_pretrained()
        take_features(self.encoder, whole.cnn)
        assert whole.trained_input is not None
        self.trained_input.wanted = whole.trained_input.wanted
        return what

    def set_normalisation(self, mean: Values, std: Values) -> None:
        """As :meth:`cvattn.models.TimmCNN.set_normalisation`, for the encoder."""
        if self.trained_input is not None:
            self.trained_input.convert(mean, std)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.in_channels)
        x = images if self.trained_input is None else self.trained_input(images)
        (x,) = self.encoder(x)
        x = self.head(self.mixed(self.far(self.near(x))))
        return F.interpolate(x, images.shape[-2:], mode="bilinear")


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def _far(head: Head, width: int, map_size: tuple[int, ...]) -> nn.Module:
    if head == "fcn":
        return nn.Identity()
    if head == "attention":
        return unet_attention(width)
    dilation = max(1, round(max(map_size) * 3 / 4 / (_FILTER // 2)))
    return WideConvolution(
        width, positions=map_size[0] * map_size[1], kernel_size=_FILTER, dilation=dilation
    )

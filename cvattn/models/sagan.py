"""A compact CNN classifier with SAGAN self-attention between its stages."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from cvattn.blocks import SelfAttention2d
from cvattn.models.image_input import check_images

_FORMS = {"common": SelfAttention2d, "biggan": SelfAttention2d.biggan}


class SAGANClassifier(nn.Module):
    """Stem, three stages of two 3x3 convolutions that each halve the map, and a linear head.

    The trunk is the shape that fast CIFAR recipes converged on (pooling early in each stage, GELU,
    max-pooled features); the attention block is SAGAN's. "SAGAN" names the attention: this is a
    classifier, not a GAN.

    Args:
        num_classes: number of logits.
        in_channels, image_size: of the images; any size, square or not.
        widths: channels of the stem and of stage1, stage2 and stage3.
        attention: False builds the same network without the block.
        attention_after: names of the layers that a block follows ("stem", "stage1", ...). For
            32x32 images these have maps of 32, 16, 8 and 4.
        attention_form: "common" (:class:`SelfAttention2d`) or "biggan" (its released form).

    Shape:
        (B, in_channels, H, W) -> (B, num_classes).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        image_size: tuple[int, int] = (32, 32),
        widths: Sequence[int] = (32, 64, 256, 256),
        attention: bool = True,
        attention_after: Sequence[str] = ("stage2",),
        attention_form: Literal["common", "biggan"] = "common",
    ) -> None:
        super().__init__()
        if len(widths) != 4:
            raise ValueError(f"widths={list(widths)}: expected 4 (stem and three stages)")
        if attention_form not in _FORMS:
            raise ValueError(f"attention_form={attention_form!r}; expected one of {sorted(_FORMS)}")
        self.in_channels = in_channels
        self.image_size = (image_size[0], image_size[1])
        stem, *stages = widths
        self.layers = nn.ModuleDict({"stem": _conv(in_channels, stem)})
        before = stem
        for index, width in enumerate(stages, start=1):
            self.layers[f"stage{index}"] = nn.Sequential(
                nn.Conv2d(before, width, 3, padding=1, bias=False),
                nn.MaxPool2d(2, ceil_mode=True),
                nn.BatchNorm2d(width),
                nn.GELU(),
                _conv(width, width),
            )
            before = width
        channels = dict(zip(self.layers, widths, strict=True))
        unknown = [name for name in attention_after if name not in channels]
        if unknown:
            raise ValueError(f"attention_after={unknown}: the layers are {list(channels)}")
        make = _FORMS[attention_form]
        self.attention = nn.ModuleDict(
            {name: make(channels[name]) for name in attention_after} if attention else {}
        )
        self.head = nn.Linear(before, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.in_channels, self.image_size)
        x = images
        for name, layer in self.layers.items():
            x = layer(x)
            if name in self.attention:
                x = self.attention[name](x)
        return self.head(x.amax(dim=(2, 3)))


def _conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.GELU(),
    )

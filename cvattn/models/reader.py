"""A network that reads a line of text from its picture."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cvattn.core import Encoder
from cvattn.core.feed_forward import Activation
from cvattn.core.initial_values import ComputedTable
from cvattn.core.positions import sincos_2d
from cvattn.models.image_input import check_images
from cvattn.models.token_decoder import TokenDecoder

_TABLE_WIDTH = 64  # columns of positions that are kept ready; wider lines are computed


class Reader(ComputedTable, TokenDecoder):
    """Convolutions to a grid of tokens, 2-D positions, encoder, decoder, logits.

    The design of TrOCR (Li et al., 2021), image in and text out of one Transformer, with a
    convolutional stem in place of patches and of pretraining (Xiao et al., "Early Convolutions Help
    Transformers See Better", 2021). The stem's norms are over the channels of each place, never
    over a batch or a line, and columns beyond a line's width are 0 before each layer: a line is
    read as if it were alone, whatever it is padded with.

    Args:
        target_vocab: number of token ids.
        height: most pixels that a line may be high; what is less is for the data to fill up.
        in_channels: of the images.
        stem: channels after each halving of the line but the last, which has ``embed_dim``; the
            height is then halved once more. (16, 32) makes 2 rows of tokens 8 pixels apart of 32.
        embed_dim, num_heads, ffn_dim: of encoder and decoder; ``embed_dim`` divisible by 4.
        num_encoder_layers, num_decoder_layers: depth.
        tied: the logits' weights are the token embedding's.
        pad_id: the id of padding.
        dropout, activation: as in the layers.

    Shape:
        images (B, in_channels, height, W), widths (B,) in pixels, target ids (B, T) -> logits
        (B, T, target_vocab); logits at t say what follows the target's tokens 0..t.

    Raises:
        ValueError: a height that the stem cannot halve; at run time, images of another height.
    """

    position_table: Tensor
    _table_name = "position_table"

    def __init__(
        self,
        target_vocab: int,
        *,
        height: int = 32,
        in_channels: int = 1,
        stem: Sequence[int] = (16, 32),
        embed_dim: int = 96,
        num_heads: int = 4,
        ffn_dim: int = 192,
        num_encoder_layers: int = 2,
        num_decoder_layers: int = 2,
        tied: bool = False,
        pad_id: int = 0,
        dropout: float = 0.0,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__(
            target_vocab,
            embed_dim=embed_dim,
            num_heads=num_heads,
            ffn_dim=ffn_dim,
            num_layers=num_decoder_layers,
            pad_id=pad_id,
            dropout=dropout,
            activation=activation,
            norm_first=True,
            tied=tied,
        )
        layers = _stem([in_channels, *stem, embed_dim])
        self.stem = nn.ModuleList(layers)
        self._strides = [layer.stride[1] for layer in layers]
        high, wide = (math.prod(layer.stride[i] for layer in layers) for i in (0, 1))
        if height < 1 or height % high:
            raise ValueError(
                f"height={height} is not divisible by {high}, which the stem's {len(self.stem)} "
                "layers divide it by"
            )
        self.height, self.in_channels = height, in_channels
        self.rows, self.column_width = height // high, wide
        self._register_table()
        self.encoder = Encoder(
            embed_dim,
            num_heads,
            ffn_dim,
            num_encoder_layers,
            dropout=dropout,
            activation=activation,
        )

    def memory_grid(self, images: Tensor) -> tuple[int, int]:
        """(rows, columns) of the tokens that images (B, C, H, W) become."""
        return self.rows, -(-images.shape[-1] // self.column_width)

    def encode(self, images: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, height, W), (B,) -> memory (B, rows * columns, D) and its mask (B, 1, 1, S)."""
        check_images(images, self.in_channels)
        if images.shape[2] != self.height:
            raise ValueError(
                f"the model reads lines {self.height} pixels high, these are {images.shape[2]}; "
                "scale them down, or fill them up with background"
            )
        x = images
        for layer, stride in zip(self.stem, self._strides, strict=True):
            x = layer(x, widths)
            widths = (widths + stride - 1) // stride
        rows, columns = x.shape[2], x.shape[3]
        x = x.permute(0, 2, 3, 1) + self._positions(columns).to(x)
        real = _within(widths, columns)[:, None].expand(-1, rows, -1).flatten(1)
        mask = real[:, None, None]
        return self.encoder(self.dropout(x.flatten(1, 2)), attn_mask=mask), mask

    def forward(self, images: Tensor, widths: Tensor, target_ids: Tensor) -> Tensor:
        memory, memory_mask = self.encode(images, widths)
        return self.decode(target_ids, memory, memory_mask)

    def _compute_table(self) -> Tensor:
        table = sincos_2d(self.rows, _TABLE_WIDTH, self.embed_dim)
        return table.view(self.rows, _TABLE_WIDTH, self.embed_dim)

    def _positions(self, columns: int) -> Tensor:
        """(rows, columns, D)."""
        if columns <= _TABLE_WIDTH:
            return self.position_table[:, :columns]
        device = self.position_table.device
        table = sincos_2d(self.rows, columns, self.embed_dim, device=device)
        return table.view(self.rows, columns, self.embed_dim)


def _stem(channels: Sequence[int]) -> "list[_StemLayer]":
    """Halves the line for each pair of channels; at last only its height, once more."""
    layers: list[_StemLayer] = []
    for index, (before, after) in enumerate(itertools.pairwise(channels)):
        if index > 1:  # where few places are left for it to cost
            layers.append(_StemLayer(before, before, (1, 1)))
        layers.append(_StemLayer(before, after, (2, 2)))
    return [*layers, _StemLayer(channels[-1], channels[-1], (2, 1))]


class _StemLayer(nn.Module):
    """A 3x3 convolution, norm over channels, ReLU; with stride 1, added to what came in."""

    def __init__(self, in_channels: int, out_channels: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.norm = _ChannelNorm(out_channels)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor, widths: Tensor) -> Tensor:
        """(B, C, H, W) that is real in the first ``widths`` columns."""
        x = _cleared(x, widths)
        y = self.activation(self.norm(self.conv(x)))
        return x + y if self.stride == (1, 1) else y


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each place of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _within(widths: Tensor, size: int) -> Tensor:
    """(B, size), True for the first ``widths`` columns."""
    return torch.arange(size, device=widths.device) < widths[:, None]


def _cleared(x: Tensor, widths: Tensor) -> Tensor:
    """Filled, not multiplied: whatever lies beyond a width, NaN too, becomes 0."""
    return x.masked_fill(~_within(widths, x.shape[3])[:, None, None], 0.0)

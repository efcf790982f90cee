"""A network that reads a line of text from its picture."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cvattn.core import AxialRotary, Encoder, Rotation
from cvattn.core.feed_forward import Activation
from cvattn.core.initial_values import ComputedTable, reset_with
from cvattn.core.masks import local_mask_2d
from cvattn.core.positions import sincos_2d
from cvattn.models.image_input import check_images
from cvattn.models.line_stem import line_stem, within
from cvattn.models.token_decoder import TokenDecoder

_TABLE_WIDTH = 64  # columns of positions that are kept ready; wider lines are computed
_THETA = 100.0  # of rotary positions, in columns and in characters
_FIRST_SHARE = 0.35  # of a character in a column, before anything is learned


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
        positions: "absolute" = sinusoidal ones are added to the grid's tokens and to the target's.
            "counted" = none are added, and lines may be longer than those trained on. In both
            self-attentions rotary positions say how far tokens are apart. Cross-attention looks for
            the t-th character: its queries are turned by t, its keys by how many characters lie
            before their column. That number is the running sum of what share of a character each
            column has, a sigmoid of the encoder's output there, learned through the rotation alone
            (the sum as in CIF: Dong and Xu, "Continuous Integrate-and-Fire", 2020).
        window: for "counted", columns that a token sees in the encoder, itself in the middle; odd.
            What a column holds then has to be told from what is near it.

    Shape:
        images (B, in_channels, height, W), widths (B,) in pixels, target ids (B, T) -> logits
        (B, T, target_vocab); logits at t say what follows the target's tokens 0..t.

    Raises:
        ValueError: a height that the stem cannot halve; unknown ``positions``, an even ``window``,
            for "counted" heads whose width 4 does not divide; at run time, another height.
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
        positions: Literal["absolute", "counted"] = "absolute",
        window: int = 9,
    ) -> None:
        if positions not in ("absolute", "counted"):
            raise ValueError(f"positions={positions!r}; expected 'absolute' or 'counted'")
        if window < 1 or window % 2 == 0:
            raise ValueError(f"window={window} must be odd and positive: a token is in its middle")
        counted = positions == "counted"
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
            rotary_theta=_THETA if counted else None,
        )
        layers = line_stem([in_channels, *stem, embed_dim])
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
        self.window = window
        self.grid_rotary: AxialRotary | None = None
        self.share: nn.Linear | None = None
        if counted:
            grid = (self.rows, _TABLE_WIDTH)
            self.grid_rotary = AxialRotary(embed_dim // num_heads, grid, theta=_THETA)
            self.share = nn.Linear(embed_dim, 1)
            reset_with(self.share, _fill_share)
            self.share.reset_parameters()
        else:
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
        x = x.permute(0, 2, 3, 1)
        real = within(widths, columns)[:, None].expand(-1, rows, -1).flatten(1)
        mask = real[:, None, None]
        terms: dict[str, Any] = {"attn_mask": mask}
        if self.grid_rotary is None:
            x = x + self._positions(columns).to(x)
        else:
            near = local_mask_2d(rows, columns, (2 * rows - 1, self.window), device=x.device)
            terms = {"attn_mask": mask & near, "rotary": self.grid_rotary((rows, columns))}
        return self.encoder(self.dropout(x.flatten(1, 2)), **terms), mask

    def characters_before(self, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """What :meth:`encode` gave -> (B, columns): characters before each column's middle.

        Raises:
            ValueError: a reader that does not count, ``positions="absolute"``.
        """
        if self.share is None:
            raise ValueError("this reader does not count characters: positions='absolute'")
        # A sum over many columns, so not in half precision.
        share = self.share(memory)[..., 0]
        share = share.to(torch.promote_types(share.dtype, torch.float32)).sigmoid()
        share = share.masked_fill(~memory_mask[:, 0, 0], 0.0).unflatten(1, (self.rows, -1)).mean(1)
        return share.cumsum(1) - share / 2

    def _memory_rotary(self, memory: Tensor, memory_mask: Tensor) -> Rotation | None:
        if self.rotary is None:
            return None
        # Half a character lies before the middle of the one that is asked for as number 0.
        place = self.characters_before(memory, memory_mask) - 0.5
        return self.rotary.at(place[:, None].expand(-1, self.rows, -1).flatten(1))

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


def _fill_share(layer: nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, math.log(_FIRST_SHARE / (1 - _FIRST_SHARE)))

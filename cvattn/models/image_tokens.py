"""From images to what a Transformer's encoder reads: patches, positions, tokens before them."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvattn.core import AxialRotary, RelativeGridBias, Rotation
from cvattn.core.initial_values import ComputedTable
from cvattn.core.positions import LearnedGridPositions, resample_grid, sincos_2d
from cvattn.models.image_input import check_image_size, check_images
from cvattn.models.patches import Stem, check_divisible, make_stem

Positions = Literal["learned", "sincos", "none"]


class ImageTokens(ComputedTable):
    """The half of :class:`cvattn.models.VisionTransformer` that is before its encoder.

    Args:
        class_token: whether there is one.
        pre_norm: a norm of the tokens, or None.
        made: device and dtype.
        others: as there.
    """

    fixed: Tensor
    _table_name = "fixed"

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        in_channels: int,
        image_size: tuple[int, int],
        patch_size: int,
        stem: Stem,
        stem_bias: bool,
        positions: Positions,
        relative_bias: bool,
        rotary: Mapping[str, Any] | None,
        class_token: bool,
        num_registers: int,
        dropout: float,
        pre_norm: nn.Module | None,
        made: Mapping[str, Any],
    ) -> None:
        super().__init__()
        height, width = image_size
        check_divisible((height, width), patch_size)
        for name, given, known in (
            ("stem", stem, ("patch", "conv")),
            ("positions", positions, ("learned", "sincos", "none")),
        ):
            if given not in known:
                raise ValueError(f"{name}={given!r}; expected one of {list(known)}")
        self.in_channels = in_channels
        self.image_size = (height, width)
        self.patch_size = patch_size
        self.grid = (height // patch_size, width // patch_size)
        self.stem = make_stem(stem, in_channels, embed_dim, patch_size, bias=stem_bias, **made)
        self.class_token = nn.Parameter(torch.empty(embed_dim, **made)) if class_token else None
        shape = (num_registers, embed_dim)
        self.registers = nn.Parameter(torch.empty(shape, **made)) if num_registers else None
        self._reset_prefix()
        self.positions = (
            LearnedGridPositions(embed_dim, self.grid, **made) if positions == "learned" else None
        )
        self._has_fixed = positions == "sincos"
        if self._has_fixed:
            self._fixed_size = (*self.grid, embed_dim)
            self._register_table(**made)
        self.relative_bias = (
            RelativeGridBias(num_heads, self.grid, **made) if relative_bias else None
        )
        self.rotary = None
        if rotary is not None:
            self.rotary = AxialRotary(
                embed_dim // num_heads,
                self.grid,
                prefix=self.num_prefix_tokens,
                device=made["device"],
                **rotary,
            )
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def _compute_table(self) -> Tensor:
        built, dim = self._fixed_size[:2], self._fixed_size[2]
        return resample_grid(sincos_2d(*built, dim), built, self.grid)

    def _reset_prefix(self) -> None:
        for tokens in (self.class_token, self.registers):
            if tokens is not None:
                nn.init.trunc_normal_(tokens, std=0.02)

    def reset_parameters(self) -> None:
        """Draw class token and registers anew, and compute fixed positions."""
        self._reset_prefix()
        super().reset_parameters()

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not to be decayed, as timm's optimisers ask for them."""
        parts = {"positions": self.positions, "relative_bias": self.relative_bias}
        exempt = {f"{name}.table" for name, part in parts.items() if part is not None}
        own = ("class_token", "registers")
        return exempt | {name for name in own if getattr(self, name) is not None}

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before those of the grid: class token and registers."""
        registers = 0 if self.registers is None else len(self.registers)
        return registers + (self.class_token is not None)

    def resample(self, image_size: tuple[int, int]) -> None:
        """Make it a network for images of another (H, W), in place: positions are interpolated.

        Saved weights load before this, into a network of the size that they were trained at.
        """
        height, width = image_size
        check_divisible((height, width), self.patch_size)
        grid = (height // self.patch_size, width // self.patch_size)
        self.image_size, self.grid = (height, width), grid
        if self.positions is not None:
            self.positions.resample(grid)
        elif self._has_fixed:
            self.fixed = self._computed().to(self.fixed)
        for part in (self.relative_bias, self.rotary):
            if part is not None:
                part.resample(grid)

    def tokens(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> what the encoder reads, (B, prefix + H/p * W/p, D)."""
        check_images(images, self.in_channels)
        if self.training:
            check_divisible((images.shape[2], images.shape[3]), self.patch_size)
        else:
            check_image_size(images, self.image_size)
        x = self.stem(images)
        grid = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)
        if self.positions is not None:
            x = self.positions(x, grid=grid)
        elif self._has_fixed:
            x = x + resample_grid(self.fixed, self.grid, grid).to(x)
        given = [each for each in (self.class_token, self.registers) if each is not None]
        prefix = [each.to(x.dtype).expand(x.shape[0], -1, -1) for each in map(_rows, given)]
        x = torch.cat([*prefix, x], dim=1) if prefix else x
        x = self.dropout(x)
        return x if self.pre_norm is None else self.pre_norm(x)

    def attn_bias(self, images: Tensor) -> Tensor | None:
        """What the encoder adds to the scores of :meth:`tokens`, (1, heads, N, N) or None."""
        if self.relative_bias is None:
            return None
        prefix = self.num_prefix_tokens
        return F.pad(self.relative_bias(self._grid_of(images)), (prefix, 0, prefix, 0))[None]

    def rotation(self, images: Tensor) -> Rotation | None:
        """What the encoder turns queries and keys of :meth:`tokens` by, or None."""
        return None if self.rotary is None else self.rotary(self._grid_of(images))

    def _grid_of(self, images: Tensor) -> tuple[int, int]:
        return images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size


def _rows(tokens: Tensor) -> Tensor:
    """A token (D,) or several (R, D) -> (1 or R, D)."""
    return tokens if tokens.ndim == 2 else tokens[None]

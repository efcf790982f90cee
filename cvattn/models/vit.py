"""A Vision Transformer on the shared encoder."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvattn.core import Encoder, RelativeGridBias
from cvattn.core.feed_forward import Activation
from cvattn.core.initial_values import ComputedTable
from cvattn.core.positions import LearnedGridPositions, resample_grid, sincos_2d
from cvattn.models.image_input import check_image_size, check_images


class VisionTransformer(ComputedTable):
    """Patches to tokens, positions, encoder, pooled to logits.

    Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021). Same arithmetic as timm's
    ``VisionTransformer`` (``cvattn.weights.from_timm`` copies weights), except that the class token
    has no position of its own: one learned vector is enough.

    Args:
        num_classes: number of logits.
        in_channels: of the images.
        image_size: (H, W) of the images, both divisible by ``patch_size``. In training mode images
            may have other such sizes: their positions are resampled.
        patch_size: side of the square that becomes one token.
        stem: "patch" = one convolution of that size and stride, as in the paper; "conv" = 3x3
            convolutions and max pooling, which small data sets prefer (Hassani et al., "Escaping
            the Big Data Paradigm with Compact Transformers", 2021; here with batch norm, and a
            convolution after the last pooling); ``patch_size`` is then a power of 2.
        embed_dim, num_heads, ffn_dim, num_layers: of the encoder.
        pool: "mean" of the tokens, or a class token, "cls".
        positions: "learned" or "sincos" (fixed).
        relative_bias: a bias on the scores for each offset between two tokens too, which begins
            local (:class:`cvattn.core.RelativeGridBias`); one for all layers. timm's networks have
            none. What it brought on CIFAR-10: benchmarks/NOTES.md.
        dropout, drop_path, layer_scale, activation, norm_eps: as in :class:`cvattn.core.Encoder`.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes).

    Raises:
        ValueError: sizes that do not divide; at run time, images of another channel count or, in
            eval mode, size.
    """

    fixed: Tensor
    _table_name = "fixed"

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        image_size: tuple[int, int] = (32, 32),
        patch_size: int = 4,
        stem: Literal["patch", "conv"] = "patch",
        embed_dim: int = 192,
        num_heads: int = 3,
        ffn_dim: int = 384,
        num_layers: int = 6,
        pool: Literal["mean", "cls"] = "mean",
        positions: Literal["learned", "sincos"] = "learned",
        relative_bias: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        activation: Activation = "gelu",
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        height, width = image_size
        _check_divisible((height, width), patch_size)
        for name, given, known in (
            ("stem", stem, ("patch", "conv")),
            ("pool", pool, ("mean", "cls")),
            ("positions", positions, ("learned", "sincos")),
        ):
            if given not in known:
                raise ValueError(f"{name}={given!r}; expected one of {list(known)}")
        self.in_channels = in_channels
        self.image_size = (height, width)
        self.patch_size = patch_size
        self.grid = (height // patch_size, width // patch_size)
        self.stem = (
            nn.Conv2d(in_channels, embed_dim, patch_size, stride=patch_size)
            if stem == "patch"
            else _conv_stem(in_channels, embed_dim, patch_size)
        )
        self.class_token = nn.Parameter(torch.empty(embed_dim)) if pool == "cls" else None
        self._reset_class_token()
        self.positions = (
            LearnedGridPositions(embed_dim, self.grid) if positions == "learned" else None
        )
        if self.positions is None:
            self._fixed_size = (*self.grid, embed_dim)
            self._register_table()
        self.relative_bias = RelativeGridBias(num_heads, self.grid) if relative_bias else None
        self.dropout = nn.Dropout(dropout)
        self.encoder = Encoder(
            embed_dim,
            num_heads,
            ffn_dim,
            num_layers,
            dropout=dropout,
            activation=activation,
            norm_eps=norm_eps,
            layer_scale=layer_scale,
            drop_path=drop_path,
        )
        self.head = nn.Linear(embed_dim, num_classes)

    def _compute_table(self) -> Tensor:
        built, dim = self._fixed_size[:2], self._fixed_size[2]
        return resample_grid(sincos_2d(*built, dim), built, self.grid)

    def _reset_class_token(self) -> None:
        if self.class_token is not None:
            nn.init.trunc_normal_(self.class_token, std=0.02)

    def reset_parameters(self) -> None:
        """Draw the class token anew, and compute fixed positions."""
        self._reset_class_token()
        super().reset_parameters()

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not to be decayed, as timm's optimisers ask for them."""
        parts = {"positions": self.positions, "relative_bias": self.relative_bias}
        exempt = {f"{name}.table" for name, part in parts.items() if part is not None}
        return exempt if self.class_token is None else exempt | {"class_token"}

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before those of the grid."""
        return 0 if self.class_token is None else 1

    def resample(self, image_size: tuple[int, int]) -> None:
        """Make it a network for images of another (H, W), in place: positions are interpolated.

        Saved weights load before this, into a network of the size that they were trained at.
        """
        height, width = image_size
        _check_divisible((height, width), self.patch_size)
        grid = (height // self.patch_size, width // self.patch_size)
        self.image_size, self.grid = (height, width), grid
        if self.positions is not None:
            self.positions.resample(grid)
        else:
            self.fixed = self._computed().to(self.fixed)
        if self.relative_bias is not None:
            self.relative_bias.resample(grid)

    def tokens(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> what the encoder reads, (B, prefix + H/p * W/p, D)."""
        check_images(images, self.in_channels)
        if self.training:
            _check_divisible((images.shape[2], images.shape[3]), self.patch_size)
        else:
            check_image_size(images, self.image_size)
        x = self.stem(images)
        grid = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)
        if self.positions is not None:
            x = self.positions(x, grid=grid)
        else:
            x = x + resample_grid(self.fixed, self.grid, grid).to(x)
        if self.class_token is not None:
            token = self.class_token.to(x.dtype).expand(x.shape[0], 1, -1)
            x = torch.cat([token, x], dim=1)
        return self.dropout(x)

    def attn_bias(self, images: Tensor) -> Tensor | None:
        """What the encoder adds to the scores of :meth:`tokens`, (1, heads, N, N) or None."""
        if self.relative_bias is None:
            return None
        height, width = (side // self.patch_size for side in images.shape[-2:])
        prefix = self.num_prefix_tokens
        return F.pad(self.relative_bias((height, width)), (prefix, 0, prefix, 0))[None]

    def forward(self, images: Tensor) -> Tensor:
        x = self.encoder(self.tokens(images), attn_bias=self.attn_bias(images))
        return self.head(x.mean(dim=1) if self.class_token is None else x[:, 0])


def _check_divisible(image_size: tuple[int, int], patch_size: int) -> None:
    if patch_size < 1 or image_size[0] % patch_size or image_size[1] % patch_size:
        raise ValueError(f"image_size={image_size} is not divisible by patch_size={patch_size}")


def _conv_stem(in_channels: int, embed_dim: int, patch_size: int) -> nn.Sequential:
    """Halve the map log2(patch_size) times by pooling, doubling the channels on the way."""
    halvings = patch_size.bit_length() - 1
    if 2**halvings != patch_size or halvings < 1:
        raise ValueError(f"stem='conv' needs a patch_size of 2, 4, 8, ..., got {patch_size}")
    layers: list[nn.Module] = []
    before = in_channels
    for index in range(halvings):
        width = max(1, embed_dim >> (halvings - index))
        layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.MaxPool2d(2)]
        layers += [nn.BatchNorm2d(width), nn.GELU()]
        before = width
    return nn.Sequential(*layers, nn.Conv2d(before, embed_dim, 3, padding=1))

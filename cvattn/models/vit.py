"""A Vision Transformer on the shared encoder."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cvattn.core import Encoder
from cvattn.core.feed_forward import Activation
from cvattn.core.multi_head import QKVBias
from cvattn.core.norms import Norm, make_norm
from cvattn.models.attention_pool import AttentionPool
from cvattn.models.image_tokens import ImageTokens, Positions
from cvattn.models.patches import Stem


class VisionTransformer(ImageTokens):
    """Patches to tokens, positions, encoder, pooled to logits.

    Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021). Same arithmetic as timm's
    ``VisionTransformer`` (``cvattn.weights.from_timm`` copies weights), except that the class token
    has no position of its own: one learned vector is enough.

    Args:
        num_classes: number of logits; 0 = no head: what is pooled comes out, (B, embed_dim).
        in_channels: of the images.
        image_size: (H, W) of the images, both divisible by ``patch_size``. In training mode images
            may have other such sizes: their positions are resampled.
        patch_size: side of the square that becomes one token.
        stem: "patch" = one convolution of that size and stride, as in the paper; "conv" = 3x3
            convolutions and max pooling, which small data sets prefer (Hassani et al., "Escaping
            the Big Data Paradigm with Compact Transformers", 2021; here with batch norm, and a
            convolution after the last pooling); ``patch_size`` is then a power of 2.
        embed_dim, num_heads, ffn_dim, num_layers: of the encoder.
        pool: "mean" of the grid's tokens, the class token, "cls", or a query that attends to the
            grid's tokens, "attention" (:class:`cvattn.models.attention_pool.AttentionPool`).
        positions: "learned", "sincos" (fixed) or "none".
        relative_bias: a bias on the scores for each offset between two tokens too, which begins
            local (:class:`cvattn.core.RelativeGridBias`); one for all layers. timm's networks have
            none. What it brought on CIFAR-10: benchmarks/NOTES.md.
        dropout, drop_path, layer_scale, activation, norm_eps: as in :class:`cvattn.core.Encoder`.
        class_token: None = where it is pooled.
        num_registers: learned tokens after it that hold what belongs to no place (Darcet et al.,
            "Vision Transformers Need Registers", 2023).
        rotary: rotary positions too: theta, pairs, coordinates, reference and offset of
            :class:`cvattn.core.AxialRotary`; {} = its defaults. The tokens before the grid's are
            not turned.
        norm, qk_norm, qkv_bias, ffn_norm, gradient_checkpointing: as in the encoder.
        stem_bias: of the stem's last convolution.
        pre_norm: a norm before the encoder (CLIP).
        fc_norm: the last norm after pooling, not before.
        device, dtype: of parameters and tables.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes).

    Raises:
        ValueError: sizes that do not divide, unknown choices, a class token that is to be pooled
            and is not there; at run time, images of another channel count or, in
            eval mode, size.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        image_size: tuple[int, int] = (32, 32),
        patch_size: int = 4,
        stem: Stem = "patch",
        embed_dim: int = 192,
        num_heads: int = 3,
        ffn_dim: int = 384,
        num_layers: int = 6,
        pool: Literal["mean", "cls", "attention"] = "mean",
        positions: Positions = "learned",
        relative_bias: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        activation: Activation = "gelu",
        norm_eps: float = 1e-6,
        class_token: bool | None = None,
        num_registers: int = 0,
        rotary: Mapping[str, Any] | None = None,
        norm: Norm = "layer",
        qk_norm: Norm | None = None,
        qkv_bias: QKVBias = True,
        ffn_norm: bool = False,
        stem_bias: bool = True,
        pre_norm: bool = False,
        fc_norm: bool = False,
        gradient_checkpointing: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if pool not in ("mean", "cls", "attention"):
            raise ValueError(f"pool={pool!r}; expected one of ['mean', 'cls', 'attention']")
        if pool == "cls" and class_token is False:
            raise ValueError("pool='cls' needs a class token; given class_token=False")
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        norms: dict[str, Any] = {"eps": norm_eps, **made}
        super().__init__(
            embed_dim,
            num_heads,
            in_channels=in_channels,
            image_size=image_size,
            patch_size=patch_size,
            stem=stem,
            stem_bias=stem_bias,
            positions=positions,
            relative_bias=relative_bias,
            rotary=rotary,
            class_token=pool == "cls" if class_token is None else class_token,
            num_registers=num_registers,
            dropout=dropout,
            pre_norm=make_norm(norm, embed_dim, **norms) if pre_norm else None,
            made=made,
        )
        self.pool = pool
        layers: dict[str, Any] = {"activation": activation, "norm": norm, "norm_eps": norm_eps}
        self.encoder = Encoder(
            embed_dim,
            num_heads,
            ffn_dim,
            num_layers,
            dropout=dropout,
            layer_scale=layer_scale,
            drop_path=drop_path,
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            ffn_norm=ffn_norm,
            final_norm=not fc_norm,
            gradient_checkpointing=gradient_checkpointing,
            **layers,
            **made,
        )
        self.attention_pool = (
            AttentionPool(embed_dim, num_heads, ffn_dim, **layers, **made)
            if pool == "attention"
            else None
        )
        self.fc_norm = make_norm(norm, embed_dim, **norms) if fc_norm else None
        self.head = nn.Linear(embed_dim, num_classes, **made) if num_classes else nn.Identity()

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not to be decayed, as timm's optimisers ask for them."""
        own = set() if self.attention_pool is None else {"attention_pool.query"}
        return super().no_weight_decay() | own

    def _encoder_input(self, images: Tensor) -> tuple[Tensor, dict[str, Any]]:
        tokens = self.tokens(images)
        return tokens, {"attn_bias": self.attn_bias(images), "rotary": self.rotation(images)}

    def features(
        self,
        images: Tensor,
        layers: Sequence[int] = (-1,),
        *,
        norm: bool = True,
        maps: bool = True,
    ) -> list[Tensor]:
        """What comes out of chosen encoder layers, in the order asked for.

        Args:
            layers: indices; negative ones count from the end.
            norm: through the encoder's last norm, each of them.
            maps: (B, embed_dim, H / patch_size, W / patch_size) of the grid's tokens; False = all
                tokens, (B, prefix + N, embed_dim).
        """
        tokens, terms = self._encoder_input(images)
        found = self.encoder.layer_outputs(tokens, layers, norm=norm, **terms)
        if not maps:
            return found
        grid, prefix = self._grid_of(images), self.num_prefix_tokens
        return [x[:, prefix:].mT.unflatten(2, grid) for x in found]

    def forward(self, images: Tensor) -> Tensor:
        tokens, terms = self._encoder_input(images)
        x = self.encoder(tokens, **terms)
        if self.pool == "cls":
            x = x[:, 0]
        else:
            x = x[:, self.num_prefix_tokens :]
            x = x.mean(dim=1) if self.attention_pool is None else self.attention_pool(x)
        return self.head(x if self.fc_norm is None else self.fc_norm(x))

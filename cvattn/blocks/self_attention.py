"""Self-attention for feature maps: every position attends to every other."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvattn.blocks.map_attention import CONVOLUTIONS, MapAttention
from cvattn.core.attention import attention, attention_weights
from cvattn.core.attention.inputs import check_rows_wanted
from cvattn.core.initial_values import reset_with
from cvattn.core.masks import combine_masks
from cvattn.core.observed import Observed
from cvattn.core.relative_bias import RelativeGridBias

# One node each in a graph of torch.fx: they branch on shapes, which a tracer does not know.
for _name in ("attention", "attention_weights", "combine_masks"):
    torch.fx.wrap(_name)

_POOL: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_BATCH_NORM: dict[int, Callable[..., nn.Module]] = {
    1: nn.BatchNorm1d,
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}


class SelfAttention(MapAttention):
    """Self-attention on maps of any number of dimensions: see :class:`cvattn.SelfAttention2d`."""

    def __init__(
        self,
        in_channels: int,
        *,
        qk_channels: int | None = None,
        value_channels: int | None = None,
        num_heads: int = 1,
        norm_groups: int | None = None,
        scale: float | None = 1.0,
        gamma_init: float | None = 0.0,
        kv_pool: int = 1,
        grid: tuple[int, int] | None = None,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            qk_channels=qk_channels,
            value_channels=value_channels,
            num_heads=num_heads,
            norm_groups=norm_groups,
            scale=scale,
            gamma_init=gamma_init,
            dropout=dropout,
            device=device,
            dtype=dtype,
        )
        if kv_pool < 1:
            raise ValueError(f"kv_pool={kv_pool} must be at least 1")
        if grid is not None and (kv_pool > 1 or self.dimensions != 2):
            raise ValueError(
                f"grid={tuple(grid)}: a relative bias is for maps (B, C, H, W) whose keys are not "
                f"pooled; this is a {type(self).__name__} with kv_pool={kv_pool}"
            )
        self.kv_pool = kv_pool
        self.relative_bias: RelativeGridBias | None = None
        if grid is not None:
            like: dict[str, Any] = {"device": device, "dtype": dtype}
            self.relative_bias = RelativeGridBias(num_heads, (grid[0], grid[1]), **like)

    @classmethod
    def biggan(cls, in_channels: int, *, spectral_norm: bool = True, **others: Any) -> Self:
        """The released SAGAN/BigGAN form: v at C/2, 2x2-pooled keys and values, output projection.

        Follows Brock et al.'s BigGAN-PyTorch (and the SAGAN release in TensorFlow). Differences:
        every width is at least 1, and odd maps are pooled with ``ceil_mode`` instead of failing.

        Args:
            in_channels: channels C of the map.
            spectral_norm: spectral normalisation of all convolutions, as GANs use it.
            others: further arguments of the class.
        """
        form: dict[str, Any] = {"value_channels": max(1, in_channels // 2), "kv_pool": 2}
        block = cls(in_channels, **{**form, **others})
        for layer in block.projections():
            layer.register_parameter("bias", None)
            if spectral_norm:
                nn.utils.parametrizations.spectral_norm(layer)
        return block

    @classmethod
    def non_local(cls, in_channels: int, *, batch_norm: bool = True, **others: Any) -> Self:
        """The non-local block, in its form of an embedded Gaussian.

        q, k and v at C/2 and a projection behind which a batch norm starts at 0, or, without one,
        a projection that does. Wang et al., "Non-local Neural Networks" (2018). The scores are
        divided by sqrt(C/2), as in the released code, not as they are, as in the paper; keys are
        not pooled (the paper's subsampling is ``kv_pool=2``).

        Args:
            in_channels: channels C of the map.
            batch_norm: behind the projection.
            others: further arguments of the class.
        """
        width = max(1, in_channels // 2)
        form: dict[str, Any] = {
            "qk_channels": width,
            "value_channels": width,
            "scale": None,
            "gamma_init": None,
        }
        block = cls(in_channels, **{**form, **others})
        if batch_norm:
            like: dict[str, Any] = {
                "device": block.query.weight.device,
                "dtype": block.query.weight.dtype,
            }
            conv = CONVOLUTIONS[cls.dimensions](width, in_channels, 1, **like)
            norm = _BATCH_NORM[cls.dimensions](in_channels, **like)
            reset_with(norm, _fill_norm)
            _fill_norm(norm)
            block.proj = nn.Sequential(conv, norm)
        return block

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        need_weights: bool = False,
        rows: Sequence[int] | Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Add to each position what it gathers from all.

        Args:
            x: (B, C, H, W).
            mask: bool (B, H, W), True = real, False = padding, in a batch of maps of unequal
                sizes. A padded map gets what it would get alone; padding itself stays as it is.
            attn_mask: bool, True = may attend, (H*W, keys) or broadcastable to (B, heads, H*W,
                keys), row by row.
            need_weights: return ``(output, weights)``, weights (B, heads, H*W, keys); the keys lie
                on :meth:`key_grid`, row by row.
            rows: with ``need_weights``, the positions y * W + x whose weights are wanted; None =
                all. Memory is linear in the keys for each row.

        Returns:
            (B, C, H, W), or the pair. The output is the same, bit for bit, with and without
            weights.
        """
        check_rows_wanted(need_weights, rows)
        tokens = self._prepared(x, mask)
        key, value, key_mask = self._pool(self.key(tokens), self.value(tokens), mask)
        q, k, v = (self._tokens(each) for each in (self.query(tokens), key, value))
        del tokens  # a map that need not be there beside what comes now
        terms: dict[str, Any] = {
            "attn_mask": combine_masks(attn_mask, key_mask),
            "attn_bias": self._bias((x.shape[-2], x.shape[-1])),
            "scale": self.scale,
        }
        attended = attention(q, k, v, dropout_p=self._dropout_p, **terms)
        for observe in self.observers:
            size = keys = None
            if self.dimensions == 2:
                size = (x.shape[-2], x.shape[-1])
                keys = (key.shape[-2], key.shape[-1])
            lies: dict[str, Any] = {"size": size, "key_size": keys, "kv_pool": self.kv_pool}
            observe(Observed(q, k, v, attended, terms, **lies))
        weights = attention_weights(q, k, rows=rows, **terms) if need_weights else None
        del key, value, q, k, v  # nor these
        output = self._add(x, attended, mask)
        return output if weights is None else (output, weights)

    def key_grid(self, *size: int) -> tuple[int, ...]:
        """(H, W) of the keys for a map of that size: smaller if keys are pooled."""
        return tuple(-(-side // self.kv_pool) for side in size)

    def _bias(self, size: tuple[int, int]) -> Tensor | None:
        return None if self.relative_bias is None else self.relative_bias(size)[None]

    def _pool(
        self, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values, and which of them are real, (B, 1, 1, keys)."""
        if self.kv_pool == 1:
            return key, value, None if mask is None else mask.flatten(1)[:, None, None]
        pool = _POOL[self.dimensions]
        if mask is None:
            key, value = (pool(x, self.kv_pool, ceil_mode=True) for x in (key, value))
            return key, value, None
        # The maximum of real positions; where there is none, a key that is hidden.
        seen = pool(mask[:, None].to(key.dtype), self.kv_pool, ceil_mode=True) > 0
        key, value = (
            pool(x.masked_fill(~mask[:, None], float("-inf")), self.kv_pool, ceil_mode=True)
            for x in (key, value)
        )
        key, value = (x.masked_fill(~seen, 0.0) for x in (key, value))
        return key, value, seen.flatten(2)[:, :, None]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kv_pool={self.kv_pool}"


def _fill_norm(norm: Any) -> None:
    norm.reset_running_stats()
    nn.init.zeros_(norm.weight)
    nn.init.zeros_(norm.bias)

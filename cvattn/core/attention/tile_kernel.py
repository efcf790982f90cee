"""The forward pass of bfloat16 tiles in torch's own CPU kernel, which keeps scores in registers.

Where a CPU multiplies whole tiles of bfloat16 (AMX), the products are so fast that the passes over
the scores between them take most of the time. Without AMX the kernel is two to three times slower
than products of tiles. Its backward pass is slow on many small maps, so tiles keep their own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cvattn.core.attention import processor
from cvattn.core.attention.plan import LEAST_FUSED_KEYS
from cvattn.core.attention.precision import product_dtype
from cvattn.core.attention.tile_weights import TileWeights
from cvattn.core.attention.tiles import Terms, Tile


def takes(query: Tensor, key: Tensor, value: Tensor, terms: Terms, dropout_p: float) -> bool:
    """Whether the kernel computes what the tiles would.

    It takes no dropout. NaN it treats in its own way: where nothing is hidden, the numbers
    must be finite; with a mask, the tiles see to that. Biases may be anything: not here.
    """
    return (
        query.device.type == "cpu"
        and processor.has_half_kernel()
        and processor.has_amx()
        and product_dtype(query.device, query.dtype) == torch.bfloat16
        and key.shape[2] >= LEAST_FUSED_KEYS
        and query.shape[2] > 0
        and dropout_p == 0.0
        and terms.attn_bias is None
        and (not terms.empty or all(bool(x.sum() * 0 == 0) for x in (query, key, value)))
    )


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale * Q K^T + mask) V, (B, heads, L, Ev); the mask float32 or None.

    Rows that may attend to nothing are 0.
    """
    width = max(query.shape[-1], value.shape[-1])
    output, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *(_widened(x, width) for x in (query, key, value)), attn_mask=mask, scale=scale
    )
    return output[..., : value.shape[-1]]


def attend_tile(group: TileWeights, tile: Tile, scale: float) -> Tensor:
    """The output of a tile, (samples, rows, Ev)."""
    allowed = group.terms.allowed(tile, group.queries.device)
    assert allowed is not None  # without mask or causality the call is taken as a whole
    mask = group.scores(tile).zero_().masked_fill_(~allowed, float("-inf"))
    query = group.queries[:, None, tile.rows]
    key, value = group.keys[:, None, tile.keys], group.values[:, None, tile.keys]
    output = attend(query, key, value, mask[:, None], scale)[:, 0]
    return output.masked_fill(~allowed.any(-1, keepdim=True), 0.0)


def _widened(x: Tensor, width: int) -> Tensor:
    """Zero columns up to ``width``, and a last stride of 1: what the kernel takes."""
    if x.shape[-1] < width:
        return F.pad(x, (0, width - x.shape[-1]))
    return x if x.stride(-1) == 1 else x.contiguous()

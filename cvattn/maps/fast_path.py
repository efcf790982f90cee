"""torch's own attention modules where they may run fused: left alone, their weights beside them.

In eval mode without gradients ``nn.MultiheadAttention``, ``nn.TransformerEncoderLayer`` and
``nn.TransformerEncoder`` run one fused operator each, whose numbers differ in the last place, and
only while no mode is on. So modes are off around them, and queries and keys come from what they
were given.
"""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvattn.core.attention import attention_weights
from cvattn.core.attention.inputs import take_rows
from cvattn.core.attention.reference import check_rows
from cvattn.core.masks import from_torch_masks, length_mask
from cvattn.maps.calls import Rows
from cvattn.maps.running import Frame

_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


class ProjectedTokens(NamedTuple):
    """The call inside a module that shows none: its inputs and the weights of its projections.

    Attributes:
        output: of the module.
        query, key: (B, L, D), (B, S, D); the same tensor in self-attention.
        module: with weights of queries, keys and values in one.
        terms: ``attn_mask`` and ``attn_bias``, as :func:`cvattn.core.attention_weights` has them.
    """

    output: Tensor
    query: Tensor
    key: Tensor
    module: nn.MultiheadAttention
    terms: dict[str, Any]

    @property
    def is_self(self) -> bool:
        return self.query is self.key

    @property
    def sides(self) -> tuple[int, int, int]:
        return self.query.shape[0], self.query.shape[1], self.key.shape[1]

    def weights(self, rows: Rows = None) -> Tensor:
        """(B, heads, L or len(rows), S).

        q . (W k + b) = (W^T q) . k + q . b, whose last part is the same for all keys: of a few
        rows no key needs to be projected.
        """
        module, heads = self.module, self.module.num_heads
        of_query, of_key, _ = module.in_proj_weight.chunk(3)
        query_bias, key_bias, _ = (
            (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
        )
        query, terms = self.query, self.terms
        if rows is not None:
            length = query.shape[1]
            rows = check_rows(rows, length, query.device)
            query = query.index_select(1, rows)
            terms = {name: take_rows(term, length, rows) for name, term in terms.items()}
        q = F.linear(query, of_query, query_bias).unflatten(-1, (heads, -1)).transpose(1, 2)
        scale = q.shape[-1] ** -0.5
        if rows is None or len(rows) > q.shape[-1]:
            k = F.linear(self.key, of_key, key_bias).unflatten(-1, (heads, -1)).transpose(1, 2)
        else:
            q = q @ of_key.unflatten(0, (heads, -1))
            k = self.key[:, None].expand(-1, heads, -1, -1)
        return attention_weights(q, k, scale=scale, **terms)

    def weights_gradient(self, output_gradient: Tensor, rows: Rows = None) -> Tensor:
        raise AssertionError("without gradients there is nothing to ask for")


def guard(module: nn.Module, *, detach: bool) -> AbstractContextManager | None:
    """A context without modes for a module that may run fused; None for any other."""
    if not isinstance(module, _FUSED) or not all(_is_plain(part) for part in module.modules()):
        return None
    with_gradients = torch.is_grad_enabled() and (
        not detach or any(parameter.requires_grad for parameter in module.parameters())
    )
    return None if module.training or with_gradients else torch._C.DisableTorchFunction()


def _is_plain(module: nn.Module) -> bool:
    """Whether it runs as torch wrote it, with all projections in one; True of other modules."""
    kind = next((kind for kind in _FUSED if isinstance(module, kind)), None)
    if kind is None:
        return True
    if type(module).forward is not kind.forward or "forward" in vars(module):
        return False
    if not isinstance(module, nn.MultiheadAttention):
        return True
    return module._qkv_same_embed_dim and module.bias_k is None and not module.add_zero_attn


def calls_inside(
    frame: Frame,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
    around: Sequence[Frame],
) -> tuple[nn.Module, ProjectedTokens] | None:
    """The call of a guarded module that has ended, and the attention module that it is of.

    Args:
        around: the frames that the module ran in.
    """
    module: Any = frame.module
    if isinstance(module, nn.MultiheadAttention):
        return module, _projected(module, output[0], *args, **kwargs)
    if isinstance(module, nn.TransformerEncoderLayer) and not frame.shows_calls:
        encoders = [each for each in around if isinstance(each.module, nn.TransformerEncoder)]
        size = encoders[-1].shapes[0] if encoders and encoders[-1].shapes else None
        return module.self_attn, _of_layer(module, output, size, *args, **kwargs)
    return None  # its parts have shown theirs


def _projected(
    module: nn.MultiheadAttention,
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> ProjectedTokens:
    both: tuple[Tensor, ...] = (query,) if query is key else (query, key)
    if query.ndim == 2:
        both = tuple(each[None] for each in both)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
    elif not module.batch_first:
        both = tuple(each.transpose(0, 1) for each in both)
    allowed, bias = from_torch_masks(attn_mask, key_padding_mask, num_heads=module.num_heads)
    return ProjectedTokens(
        output, both[0], both[-1], module, {"attn_mask": allowed, "attn_bias": bias}
    )


def _of_layer(
    layer: nn.TransformerEncoderLayer,
    output: Tensor,
    size: torch.Size | None,
    src: Tensor,
    src_mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool = False,
) -> ProjectedTokens:
    """The call inside a fused layer; nested tokens are padded to ``size``, (B, S, D)."""
    if src.is_nested:
        lengths = torch.tensor([len(part) for part in src.unbind()], device=src.device)
        src = torch.nested.to_padded_tensor(src, 0.0, size)
        src_key_padding_mask = ~length_mask(lengths, src.shape[1])[:, 0, 0]
    norm, x = layer.norm1, src
    if layer.norm_first:
        x = F.layer_norm(src, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    masks = (None if m is None else _hidden(m) for m in (src_key_padding_mask, src_mask))
    padding, mask = masks
    return _projected(layer.self_attn, output, x, x, x, padding, False, mask)


def _hidden(mask: Tensor) -> Tensor:
    """A mask as torch's fused layer reads it."""
    if mask.dtype == torch.bool:
        return mask
    hidden = mask != 0
    if (hidden & mask.isfinite()).any():
        warnings.warn(
            "torch's fused nn.TransformerEncoderLayer takes every number but 0 in a float mask for "
            "hidden; torch.backends.mha.set_fastpath_enabled(False) has such numbers added",
            stacklevel=2,
        )
    return hidden

"""Attention as everything here calls it, and the plan that chooses how it is computed."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cvattn.core.attention.inputs import check_inputs, check_terms, merge_allowed
from cvattn.core.attention.reference import reference_attention

# Above this many bytes the L x S scores are not stored.
SCORES_BOUND = 64 * 2**20


class Route(NamedTuple):
    """How attention is computed, and why that way."""

    name: Literal["fused", "padded", "direct"]
    reason: str


def choose_route(query: Tensor, key: Tensor, value: Tensor, *, dropout_p: float = 0.0) -> Route:
    """Which route :func:`attention` takes for inputs like these; shapes and dtype alone decide.

    - ``fused``: ``F.scaled_dot_product_attention``, linear in memory where torch has a kernel.
    - ``padded``: the same kernel, q and k (or v) padded with zero columns to one width. The CPU
      kernel refuses unequal widths and would fall back to storing all scores.
    - ``direct``: the plain products of the reference, which are faster while the scores are small.
    """
    width, value_width = query.shape[-1], value.shape[-1]
    if query.is_meta:
        return Route("direct", "shapes alone: nothing is stored, and no padding is to be counted")
    # The CPU's fused kernel is 3 to 5 times slower than the products in half precision, most of it
    # in the backward pass.
    half_on_cpu = query.device.type == "cpu" and query.element_size() == 2
    if width == value_width and not half_on_cpu:
        return Route("fused", "query and value have one width")
    if dropout_p > 0.0:
        return Route("direct", "dropout on the weights needs the weights")
    scores = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2] * query.element_size()
    small = _at_most(scores, SCORES_BOUND)
    if width == value_width:
        why = "half precision on a CPU, and the scores are"
        return Route("direct", f"{why} small") if small else Route("fused", f"{why} large")
    why = f"widths {width} and {value_width} differ, and the scores are"
    return Route("direct", f"{why} small") if small else Route("padded", f"{why} large")


def _at_most(size: int, bound: int) -> bool:
    """``size <= bound``; False for a size left open in an export: it must not become limited."""
    if torch.compiler.is_exporting():
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return statically_known_true(size <= bound)
    return size <= bound


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention: softmax(scale * Q K^T + bias) V over the allowed keys.

    Args:
        query: (B, heads, L, E).
        key: (B, heads, S, E).
        value: (B, heads, S, Ev); Ev may differ from E.
        attn_mask: bool, True = may attend; (L, S) or broadcastable to (B, heads, L, S). Builders
            and adapters for other conventions are in :mod:`cvattn.core.masks`.
        attn_bias: float, added to the scores before the softmax; same shapes.
        is_causal: query i sees the keys up to i + (S - L) (aligned to the bottom right, so that a
            step with cached keys is right); combines with mask and bias.
        scale: factor on the scores; None = 1/sqrt(E). SAGAN passes 1.0.
        dropout_p: probability of dropping a weight, applied whenever it is > 0: the caller passes
            0 outside training.

    Returns:
        (B, heads, L, Ev). A query that may attend to nothing gets 0, with finite gradients.

    Raises:
        ValueError: shapes that do not fit, or ambiguous mask shapes.
        TypeError: a float ``attn_mask``, a bool ``attn_bias``, or q, k, v of different dtypes.

    The fused kernels have no second derivative. For gradient penalties run the forward pass under
    ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``, which this function respects.
    """
    check_inputs(query, key, value)
    check_terms(query, key, attn_mask, attn_bias)
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p={dropout_p} is not a probability in [0, 1)")
    route = choose_route(query, key, value, dropout_p=dropout_p)
    if route.name == "direct":
        return reference_attention(
            query,
            key,
            value,
            attn_mask=attn_mask,
            attn_bias=attn_bias,
            is_causal=is_causal,
            scale=scale,
            dropout_p=dropout_p,
        )
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    value_width = value.shape[-1]
    width = max(query.shape[-1], value_width)
    # torch's causal flag is aligned to the top left and refuses company, so it serves one case.
    plain_causal = (
        is_causal and attn_mask is None and attn_bias is None and query.shape[2] == key.shape[2]
    )
    term = None if plain_causal else _merge_terms(query, key, attn_mask, attn_bias, is_causal)
    output = F.scaled_dot_product_attention(
        _dense(query, width),
        _dense(key, width),
        _dense(value, width),
        attn_mask=term,
        dropout_p=dropout_p,
        is_causal=plain_causal,
        scale=scale,
    )
    return output[..., :value_width]


def _dense(tensor: Tensor, width: int) -> Tensor:
    """Zero columns up to ``width`` (they add nothing to a product), and a last stride of 1.

    The CPU kernel needs that stride: without it torch stores all scores and says nothing.
    """
    if tensor.shape[-1] < width:
        tensor = F.pad(tensor, (0, width - tensor.shape[-1]))
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _merge_terms(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None,
    attn_bias: Tensor | None,
    is_causal: bool,
) -> Tensor | None:
    """Mask, causality and bias as the one term that torch takes: bool, or float with -inf."""
    allowed = merge_allowed(query, key, attn_mask, is_causal, None)
    if attn_bias is None:
        return allowed
    bias = attn_bias.to(query.dtype)
    if allowed is None:
        return bias
    return torch.where(allowed, bias, float("-inf"))

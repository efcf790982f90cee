"""Attention along the row and the column of each position, in one softmax."""

import torch
from torch import Tensor

from cvattn.core.attention.call import AttentionCall, describe_call
from cvattn.core.attention.criss_cross_autograd import CrissCross
from cvattn.core.attention.criss_cross_formula import attend_whole
from cvattn.core.attention.inputs import check_maps
from cvattn.core.attention.plan import Route, RouteName, own_route, why_impossible
from cvattn.core.attention.precision import autocast_dtype, without_autocast
from cvattn.core.attention.routing import take_route


def criss_cross_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attention of each position to its row and its column, H + W - 1 keys in one softmax.

    Huang et al., "CCNet: Criss-Cross Attention for Semantic Segmentation" (2019), section 3.2;
    as there, the position itself is one key, not two. The released code has no factor on the
    scores: ``scale=1.0``. Memory is linear in the number of positions, time N * (H + W).

    The specification is :func:`cvattn.core.attention.reference_attention` under
    :func:`cvattn.core.masks.criss_cross_mask_2d`.

    Args:
        query, key: (B, heads, H, W, E).
        value: (B, heads, H, W, Ev); Ev may differ from E.
        key_mask: bool, (B, H, W), True = may be attended to.
        scale: factor on the scores; None = 1/sqrt(E).
        dropout_p: probability of dropping a weight, applied whenever it is > 0.

    Returns:
        (B, heads, H, W, Ev). A query that may attend to nothing gets 0, with finite gradients. NaN
        or infinity in a key or value that is hidden reaches nothing.

    Raises:
        ValueError, TypeError: shapes or masks that do not fit.
        NotImplementedError: forward mode or third derivatives where the scores are too many to be
            stored (route ``tiled``); ``with use_route("direct")`` stores them.
    """
    check_maps(query, key, value, key_mask)
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p={dropout_p} is not a probability in [0, 1)")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    route = take_route(_describe(query, key, value, dropout_p), _choose, _why_impossible)
    if key_mask is not None:
        # A weight of 0 does not hide a NaN. This fill's derivative cuts what a NaN in a query that
        # sees nothing would give to the keys.
        hidden = ~key_mask[:, None, :, :, None]
        key, value = key.masked_fill(hidden, 0.0), value.masked_fill(hidden, 0.0)
    dtype = autocast_dtype(query) or query.dtype
    query, key, value = (x.to(dtype) for x in (query, key, value))
    with without_autocast(query):
        if route.name == "direct":
            return attend_whole(query, key, value, key_mask, scale, dropout_p)
        seed = torch.randint(2**62, (1,)) if dropout_p > 0.0 else None
        tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
        run = torch.ops.cvattn.criss_cross if tracing else CrissCross.apply
        return run(query, key, value, key_mask, scale, dropout_p, seed)[0]


def _describe(query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> AttentionCall:
    height, width = query.shape[2:4]
    call = describe_call(*(x[:, :, 0] for x in (query, key, value)), dropout_p=dropout_p)
    return call._replace(length=height * width, key_length=height + width - 1)


def _choose(call: AttentionCall) -> Route:
    if call.device == "meta":
        return Route("direct", "shapes alone: nothing is stored", {})
    unable = why_impossible("tiled", call)
    if unable is not None:
        return Route("direct", unable, {"fused": _JOINT, "padded": _JOINT, "tiled": unable})
    return own_route(call, {"fused": _JOINT, "padded": _JOINT})


def _why_impossible(name: RouteName, call: AttentionCall) -> str | None:
    return _JOINT if name in ("fused", "padded") else why_impossible(name, call)


_JOINT = "no fused kernel has one softmax over a row and a column"

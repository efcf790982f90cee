"""A call of attention as the plan sees it: sizes, dtype, device, and what is asked of it."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cvattn.core.attention.precision import autocast_dtype
from cvattn.core.constants import constant_in_programs


class AttentionCall(NamedTuple):
    """A call of :func:`attention`, as the plan sees it.

    Attributes:
        head_dim: E, width of query and key.
        value_dim: Ev, width of the value.
        dtype: in which the products are made (under autocast, autocast's).
        device: "cpu", "cuda", ...
        built_mask: elements of the mask that the fused kernels would need built for them (causal
            with L != S, or several of mask, bias and causality); 0 = none, or one is there already.
        grad: gradients of query, key or value are wanted.
        bias_grad: a gradient of ``attn_bias`` is wanted.
        dropout: weights are dropped.
        transformed: inside a transform of torch.func, or forward-mode differentiation.
        masked: a mask or causality may hide keys.
    """

    batch: int
    heads: int
    length: int
    key_length: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    device: str
    built_mask: int = 0
    grad: bool = True
    bias_grad: bool = False
    dropout: bool = False
    transformed: bool = False
    masked: bool = False


def count_scores(call: AttentionCall) -> int:
    """Number of scores, batch and heads included."""
    return call.batch * call.heads * call.length * call.key_length


def describe_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
    is_causal: bool = False,
    dropout_p: float = 0.0,
) -> AttentionCall:
    """The call as the plan sees it."""
    device = query.device.type
    built = 0
    # An export takes torch's operators in any case, and its sizes must stay open.
    if not exporting():
        shapes = [tuple(term.shape) for term in (attn_mask, attn_bias) if term is not None]
        alone = not is_causal or (not shapes and query.shape[2] == key.shape[2])
        shapes += [] if alone else [(query.shape[2], key.shape[2])]
        if len(shapes) > 1 or not alone:
            built = torch.Size(torch.broadcast_shapes(*shapes)).numel()
    return AttentionCall(
        batch=query.shape[0],
        heads=query.shape[1],
        length=query.shape[2],
        key_length=key.shape[2],
        head_dim=query.shape[3],
        value_dim=value.shape[3],
        dtype=autocast_dtype(query) or query.dtype,
        device=device,
        built_mask=built,
        grad=torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)),
        bias_grad=attn_bias is not None and attn_bias.requires_grad and torch.is_grad_enabled(),
        dropout=dropout_p > 0.0,
        transformed=_is_transformed(),
        masked=attn_mask is not None or is_causal,
    )


def _is_transformed() -> bool:
    """Whether torch.func (grad, vmap, jvp, ...) or a level of dual numbers is at work.

    Asked of the process's state, not of the tensors: those of an inner transform do not show what
    an outer one has wrapped.
    """
    # A level of torch.func.jvp, too, is one of dual numbers. No public function tells either.
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


# torch 2.10's compiler takes is_exporting() for True in every program. What is constant in one is
# asked outside of it.
@constant_in_programs
def exporting() -> bool:
    """Whether a program is being made for elsewhere, whose sizes must stay open."""
    return torch.compiler.is_exporting()

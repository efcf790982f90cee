"""Calls of torch's attention functions and softmaxes, seen from outside while a model runs."""

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cvattn.core.attention.reference import check_rows
from cvattn.core.observed import Observed

_SOFTMAXES = {F.softmax, torch.softmax, torch.special.softmax, Tensor.softmax}
Rows = Sequence[int] | Tensor | None


class GivenWeights(NamedTuple):
    """Weights that a model computes itself.

    Attributes:
        output: of the softmax, the tensor that the pass goes on with.
        weights_of: it, or its gradient -> (B, heads, L, S).
        is_self: keys come from the tokens that ask, as far as one can tell.
    """

    output: Tensor
    weights_of: Callable[[Tensor], Tensor]
    is_self: bool = True

    @property
    def sides(self) -> tuple[int, int, int]:
        """(B, L, S)."""
        batch, _, queries, keys = self.weights_of(self.output).shape
        return batch, queries, keys

    def weights(self, rows: Rows = None) -> Tensor:
        return self._take(self.weights_of(self.output), rows)

    def weights_gradient(self, output_gradient: Tensor, rows: Rows = None) -> Tensor:
        return self._take(self.weights_of(output_gradient), rows)

    @staticmethod
    def _take(weights: Tensor, rows: Rows) -> Tensor:
        if rows is None:
            return weights.clone()  # the model may go on writing into its own
        return weights.index_select(2, check_rows(rows, weights.shape[2], weights.device))


class AttentionCalls(TorchFunctionMode):
    """Shows each call of attention to ``call``, and each softmax over a last dimension to
    ``softmax``; what is computed stays the same, bit for bit.

    Args:
        call: takes each of ``F.scaled_dot_product_attention``, tensors shaped as given.
        softmax: takes the result of each, 3-D or 4-D.

    Both also take the call of ``F.multi_head_attention_forward`` that theirs is inside, if any.
    """

    def __init__(
        self,
        call: Callable[[Observed, "MultiHeadCall | None"], None],
        softmax: Callable[[Tensor, "MultiHeadCall | None"], None],
    ) -> None:
        super().__init__()
        self._call, self._softmax = call, softmax
        self._inside: MultiHeadCall | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _WATCHED:  # most of a pass: every microsecond counts
            return func(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self._multi_head(args, kwargs)
        if func in _OPENED:
            with self:
                return _OPENED[func](*args, **kwargs)
        output = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            self._call(_observed(output, *args, **kwargs), self._inside)
        elif _is_over_keys(output, args, kwargs):
            self._softmax(output, self._inside)
        return output

    def _multi_head(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        query, key = args[:2]
        self._inside = MultiHeadCall(args[4], is_self=query is key)
        try:
            with self:
                return _OPENED[F.multi_head_attention_forward](*args, **kwargs)
        finally:
            self._inside = None


class MultiHeadCall(NamedTuple):
    """A call of ``F.multi_head_attention_forward``."""

    num_heads: int
    is_self: bool


def _opened(function: Any) -> Any:
    """The function, but that modes see what it calls: its own check for them answers no.

    A function with that check runs inside a mode's ``__torch_function__``, where no mode is on.
    """
    checks = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    given = {**function.__globals__, **dict.fromkeys(checks, lambda *_: False)}
    opened = FunctionType(
        function.__code__, given, function.__name__, function.__defaults__, function.__closure__
    )
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


# In the last three activation checkpointing runs parts of the model again.
_OPENED = {
    function: _opened(function)
    for function in (
        F.multi_head_attention_forward,
        Tensor.backward,
        torch.autograd.backward,
        torch.autograd.grad,
    )
}
_WATCHED = {F.scaled_dot_product_attention, *_SOFTMAXES, *_OPENED}


def _is_over_keys(output: Tensor, args: tuple, kwargs: dict[str, Any]) -> bool:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return output.ndim in (3, 4) and dim in (-1, output.ndim - 1)


def _observed(
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Observed:
    """A call of ``F.scaled_dot_product_attention`` in the terms of ours."""
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = (each.repeat_interleave(times, -3) for each in (key, value))
    length, keys = query.shape[-2], key.shape[-2]
    if is_causal and length != keys:  # torch aligns to the top left, ours to the bottom right
        attn_mask = torch.ones(length, keys, dtype=torch.bool, device=query.device).tril()
        is_causal = False
    is_bool = attn_mask is not None and attn_mask.dtype == torch.bool
    return Observed(
        query,
        key,
        value,
        output,
        {
            "attn_mask": attn_mask if is_bool else None,
            "attn_bias": None if is_bool else attn_mask,
            "is_causal": is_causal,
            "scale": scale,
        },
    )

"""For every attention in a module: which way it is computed, why, and what that costs."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cvattn.core.attention import attention, record_routes
from cvattn.core.attention.call import AttentionCall
from cvattn.core.attention.plan import Route, RouteName
from cvattn.cost.memory import LIBRARIES, can_trace, predict_peak
from cvattn.cost.shapes import as_shapes

# Routes that keep no weights for the backward pass, and compute the scores once more instead.
RECOMPUTING = frozenset({"fused", "padded", "tiled"})


class AttentionCost(NamedTuple):
    """One call of attention.

    Attributes:
        name: of the module that called it, as in ``named_modules``; "" for the module itself.
        batch, heads, queries, keys: sizes; queries and keys are tokens.
        head_dim, value_dim: widths of query and key, and of value, of one head.
        dtype: of the three.
        route: "fused", "padded", "tiled" or "direct".
        reason: why that one.
        refused: why not, for each route that would be faster or smaller.
        flops: 2 for each multiply-accumulate, with true widths: see :func:`attention_flops`.
        peak_bytes: above query, key and value, of this call alone, these being contiguous; None for
            CUDA without a GPU.
    """

    name: str
    batch: int
    heads: int
    queries: int
    keys: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    route: str
    reason: str
    refused: Mapping[RouteName, str]
    flops: int
    peak_bytes: int | None


def explain_attention(
    module: nn.Module, *inputs: Tensor, device: str = "cpu", training: bool = False
) -> list[AttentionCost]:
    """Every attention that one forward pass calls, in order; nothing is computed.

    Args:
        module: any; attentions other than cvattn's are not seen.
        inputs: what it is called with; only shape, strides, dtype and requires_grad are read.
        device: "cpu" or "cuda", which need not exist here.
        training: count a forward and a backward pass, in train mode; else forward, in eval mode.

    Raises:
        ValueError: a device other than "cpu" and "cuda"; whatever the module raises itself.
    """
    with as_shapes(module, inputs, training=training, device=device) as (shapes, fakes):
        names = _Callers(shapes)
        with record_routes() as calls:
            names.calls = calls
            shapes(*fakes)
    peaks: dict[AttentionCall, int | None] = {}
    costs = []
    for name, (call, route) in zip(names.of_calls(), calls, strict=True):
        if call not in peaks:
            peaks[call] = (
                _peak(call, training=training, device=device) if can_trace(device) else None
            )
        costs.append(
            AttentionCost(
                name=name,
                batch=call.batch,
                heads=call.heads,
                queries=call.length,
                keys=call.key_length,
                head_dim=call.head_dim,
                value_dim=call.value_dim,
                dtype=call.dtype,
                route=route.name,
                reason=route.reason,
                refused=route.refused,
                flops=attention_flops(call, route, training=training),
                peak_bytes=peaks[call],
            )
        )
    return costs


def attention_flops(call: AttentionCall, route: Route, *, training: bool) -> int:
    """Operations of the matrix products, 2 for each multiply-accumulate, with true widths.

    Forward: scores and output, 2 B h L S (E + Ev). Backward: the gradients of query, key, value and
    weights, twice that; routes that keep no weights compute the scores once more. So training is 3
    times the forward pass, or 3.5 times where scores are recomputed and E = Ev. Zero columns of the
    padded route and pairs under a mask are not taken apart.
    """
    pair = 2 * call.batch * call.heads * call.length * call.key_length
    forward = pair * (call.head_dim + call.value_dim)
    if not training:
        return forward
    return 3 * forward + (pair * call.head_dim if route.name in RECOMPUTING else 0)


class _Callers:
    """Which module each recorded call came from: the innermost one whose forward is running."""

    def __init__(self, module: nn.Module) -> None:
        self.calls: list[tuple[AttentionCall, Route]] = []
        self._found: list[str] = []
        self._running: list[str] = []
        for name, part in module.named_modules():
            part.register_forward_pre_hook(lambda *_, name=name: self._enter(name))
            part.register_forward_hook(lambda *_: self._leave())

    def _enter(self, name: str) -> None:
        self._settle()
        self._running.append(name)

    def _leave(self) -> None:
        self._settle()
        self._running.pop()

    def _settle(self) -> None:
        """Calls recorded since the last change of module are the running one's."""
        fresh = len(self.calls) - len(self._found)
        self._found += [self._running[-1]] * fresh if fresh else []

    def of_calls(self) -> list[str]:
        return self._found


class _Alone(nn.Module):
    """The attention of a call and nothing around it."""

    def __init__(self, *, is_causal: bool, dropout_p: float) -> None:
        super().__init__()
        self.is_causal = is_causal
        self.dropout_p = dropout_p

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        return attention(
            query,
            key,
            value,
            attn_mask=mask,
            attn_bias=bias,
            is_causal=self.is_causal,
            dropout_p=self.dropout_p,
        )


def _peak(call: AttentionCall, *, training: bool, device: str) -> int:
    """Of a call like this one; masks and biases are given as the smallest that are like its own."""
    scores = (call.length, call.key_length)

    def given(length: int, width: int) -> Tensor:
        shape = (call.batch, call.heads, length, width)
        return torch.empty(shape, dtype=call.dtype, device="meta", requires_grad=training)

    # A mask that must be built is one of causality and another.
    mask = torch.empty(scores, dtype=torch.bool, device="meta") if call.built_mask else None
    bias = (
        torch.empty(scores, dtype=call.dtype, device="meta", requires_grad=True)
        if call.bias_grad
        else None
    )
    alone = _Alone(is_causal=call.built_mask > 0, dropout_p=0.5 if call.dropout else 0.0)
    return predict_peak(
        alone,
        given(call.length, call.head_dim),
        given(call.key_length, call.head_dim),
        given(call.key_length, call.value_dim),
        mask,
        bias,
        training=training,
        device=device,
    ) - (LIBRARIES if device == "cpu" else 0)

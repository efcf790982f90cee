"""Attention through all layers of a stack: what of each input token is in each output token."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


def attention_rollout(
    maps: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor] | None = None,
    *,
    residual: float = 0.5,
) -> Tensor:
    """How much of each input token is in each output token, through all layers: (B, N, N).

    Abnar and Zuidema, "Quantifying Attention Flow in Transformers" (2020): heads are averaged, each
    layer is mixed with the identity for its residual connection, and the layers are multiplied,
    first to last, in float32 at least. Rows sum to 1. With a class token first,
    ``rollout[:, 0, 1:]`` is its map over the grid, without one the mean over all rows;
    :func:`cvattn.maps.rollout_heat` puts either on the images.

    With gradients it is the rollout of what one answer rests on, gradient-weighted: in place of the
    weights A, a layer has mean over heads of (dA * A)^+, its rows divided by their sums. The
    weighting is that of :func:`attention_relevance`, whose layers are not divided: here how large
    the gradient of a layer is does not matter, only where it lies.

    Args:
        maps: self-attention weights (B, heads, N, N) of the layers, first to last, as
            :func:`capture_attention` gives them for all rows.
        gradients: d score / d weights, as ``maps.gradients(score)`` gives them.
        residual: share of the identity; 0.5 is the paper's.

    Raises:
        ValueError: no maps, or of other shapes: a subset of rows, pooled keys; cross-attention
            among them, also where it has as many keys as queries; a layer that ran several times;
            gradients of other layers or shapes.
    """
    if not 0.0 <= residual < 1.0:
        raise ValueError(f"residual={residual} must be in [0, 1)")
    rollout: Tensor | None = None
    for layer in _layers(maps, gradients):
        layer = layer if gradients is None else _rows_to_one(layer)
        mixed = (1.0 - residual) * layer + residual * _identity(layer)
        mixed = _rows_to_one(mixed)
        rollout = mixed if rollout is None else mixed @ rollout
    assert rollout is not None
    return rollout


def attention_relevance(maps: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Tensor:
    """How much each input token has to do with one answer, seen from each output token: (B, N, N).

    Chefer, Gur and Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and
    Encoder-Decoder Transformers" (2021), their rule for self-attention: R starts as the identity,
    and each layer adds to it, ``R = R + mean over heads of (dA * A)^+ R``, first to last, in
    float32 at least. Rows have no fixed sum; all but the identity in it grows with the score. With
    a class token first, ``relevance[:, 0, 1:]`` is the map of the answer over the grid;
    :func:`cvattn.maps.rollout_heat` puts it on the images.

    Args:
        maps: weights as for :func:`attention_rollout`, captured with ``detach=False``.
        gradients: d score / d weights, as ``maps.gradients(score)`` gives them.

    Raises:
        ValueError: as :func:`attention_rollout`.
    """
    relevance: Tensor | None = None
    for layer in _layers(maps, gradients):
        step = layer + _identity(layer)
        relevance = step if relevance is None else step @ relevance
    assert relevance is not None
    return relevance


def _layers(maps: Mapping[str, Tensor], gradients: Mapping[str, Tensor] | None) -> Iterator[Tensor]:
    """The layers of one stack, checked: (B, N, N), the mean over heads of A or of (dA * A)^+."""
    if not maps:
        raise ValueError("there are no maps to roll out")
    cross = sorted(set(getattr(maps, "cross", ())) & set(maps))
    if cross:
        raise ValueError(
            f"{', '.join(cross)}: keys of other tokens than the queries'; rollout is of the "
            "self-attention of one stack; name its blocks, layers=[...]"
        )
    repeated = [name for name, runs in getattr(maps, "runs", {}).items() if len(runs) > 1]
    if repeated:
        raise ValueError(
            f"{', '.join(repeated)}: ran more than once in the pass, and the maps have the last "
            "run; put all runs in their order into a dict (maps.runs) to roll them out"
        )
    if gradients is not None and gradients.keys() != maps.keys():
        raise ValueError(
            f"gradients of {', '.join(gradients) or 'nothing'}, weights of {', '.join(maps)}; "
            "expected both of the same layers, as maps.gradients(score) gives them"
        )
    expected: tuple[int, ...] | None = None
    for name, weights in maps.items():
        size = (weights.shape[0], *weights.shape[2:])
        if weights.ndim != 4 or size[1] != size[2] or expected not in (None, size):
            raise ValueError(
                f"{name}: weights {tuple(weights.shape)} cannot be rolled out; every layer has to "
                "attend from all N tokens to the same N, (B, heads, N, N)"
            )
        expected = size
        if gradients is not None:
            if gradients[name].shape != weights.shape:
                raise ValueError(
                    f"{name}: gradients {tuple(gradients[name].shape)} of weights "
                    f"{tuple(weights.shape)}; expected one shape"
                )
            weights = gradient_weighted(weights, gradients[name])
        yield _at_least_float32(weights).mean(dim=1)


def tokens_read(gradient: Tensor) -> Tensor:
    """Which tokens an answer reads behind the last layer, (B, N): 1 or 0.

    Of others no weight of that layer has a gradient: behind it they go nowhere.

    Args:
        gradient: d score / d weights of the last layer, (B, heads, N, N).
    """
    return gradient.ne(0).any(-1).any(1).to(torch.promote_types(gradient.dtype, torch.float32))


def gradient_weighted(weights: Tensor, gradients: Tensor) -> Tensor:
    """(dA * A)^+, what the answer took through each weight; in float32 at least."""
    return (gradients * _at_least_float32(weights)).clamp_min(0.0)


def _at_least_float32(weights: Tensor) -> Tensor:
    # Rounded to half precision after each layer, rows would soon no longer sum to 1.
    return weights.to(torch.promote_types(weights.dtype, torch.float32))


def _identity(layer: Tensor) -> Tensor:
    return torch.eye(layer.shape[-1], dtype=layer.dtype, device=layer.device)


def _rows_to_one(layer: Tensor) -> Tensor:
    """Rows divided by their sums; a row of zeros stays one."""
    return layer / layer.sum(-1, keepdim=True).clamp_min(torch.finfo(layer.dtype).tiny)

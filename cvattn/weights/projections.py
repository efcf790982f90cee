"""Weights of linear layers and of 1x1 convolutions, which are the same numbers in other shapes."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from cvattn.weights.copying import set_parameter


class Projection(NamedTuple):
    """weight (outputs, inputs) or (outputs, inputs, 1, ...), and bias (outputs,) or none."""

    weight: Tensor
    bias: Tensor | None


def projection_of(layer: Any) -> Projection:
    """Of an ``nn.Linear``, or a 1x1 convolution of any number of dimensions."""
    return Projection(layer.weight, layer.bias)


def split_projection(layer: nn.Linear, parts: int) -> list[Projection]:
    """Of a layer that holds several, one below the other: q, k and v, or k and v."""
    weights = _chunks(layer.weight, parts)
    biases = [None] * parts if layer.bias is None else _chunks(layer.bias, parts)
    return [Projection(*each) for each in zip(weights, biases, strict=True)]


def join_projections(target: nn.Module, sources: list[Projection]) -> None:
    """The other way: make one layer's parameters the copy of several's, trainable if any is."""
    for name, parts in (
        ("weight", [each.weight for each in sources]),
        ("bias", [each.bias for each in sources if each.bias is not None]),
    ):
        if parts:
            set_parameter(target, name, *parts)


def set_projection(target: nn.Module, source: Projection) -> None:
    """Make the layer's parameters the copy of those, and without a bias if there is none."""
    weight, bias = source
    wanted = target.get_parameter("weight").shape
    if all(side == 1 for side in (*weight.shape[2:], *wanted[2:])):
        weight = _like(weight.detach().flatten(1).reshape(-1, weight.shape[1], *wanted[2:]), weight)
    set_parameter(target, "weight", weight)
    if bias is None:
        target.register_parameter("bias", None)
    else:
        set_parameter(target, "bias", bias)


def _chunks(tensor: Tensor, parts: int) -> list[Tensor]:
    return [_like(each, tensor) for each in tensor.detach().chunk(parts)]


def _like(view: Tensor, source: Tensor) -> Tensor:
    """With the ``requires_grad`` of what it is a view of."""
    return view.requires_grad_(source.requires_grad)

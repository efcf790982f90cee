"""What a model does with its layers, found out by running it: how often, in what order, on what."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map_only

from cvattn.core.modes import in_eval_mode


class Call(NamedTuple):
    """The inputs of one pass, and of how many dimensions the maps are that are looked for."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dimensions: int = 2

    @classmethod
    def of(cls, example: Any, dimensions: int = 2) -> "Call":
        """A tuple holds positional inputs, a mapping keyword ones; all else is the one input."""
        if isinstance(example, tuple):
            return cls(tuple(example), {}, dimensions)
        if isinstance(example, Mapping):
            return cls((), dict(example), dimensions)
        return cls((example,), {}, dimensions)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(H, W) of the first input that may be an image."""
        leaves = tree_leaves((self.args, self.kwargs))
        images = (leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim >= 3)
        return next(((image.shape[-2], image.shape[-1]) for image in images), None)

    def __str__(self) -> str:
        parts = [_shapes(arg) for arg in self.args]
        return ", ".join(parts + [f"{key}={_shapes(arg)}" for key, arg in self.kwargs.items()])


class Run(NamedTuple):
    """One pass.

    Attributes:
        outputs: of each layer that ran, in the order in which they ended; one for each run.
        normed: the layers whose output went straight into a batch norm.
        result: the model's output.
        failure: what ended the pass before its end.
    """

    outputs: dict[str, list[Any]]
    normed: set[str]
    result: Any
    failure: Exception | None


def run(model: nn.Module, call: Call, layers: Mapping[str, nn.Module]) -> Run:
    """Pass the inputs through the model in eval mode, watching some of its layers.

    Nothing stays changed: no statistics, no random state, no inputs.
    """
    outputs: dict[str, list[Any]] = {}
    given: list[tuple[str, Any]] = []
    normed: set[str] = set()

    def note(name: str, output: Any) -> None:
        given.append((name, output))
        outputs.setdefault(name, []).append(copied(output))  # later layers may work in place

    def note_normed(_: nn.Module, args: tuple[Any, ...]) -> None:
        normed.update(name for name, output in given if args and args[0] is output)

    handles = [
        layer.register_forward_hook(
            lambda _, __, output, name=name: note(name, output), prepend=True
        )
        for name, layer in layers.items()
    ]
    handles += [
        module.register_forward_pre_hook(note_normed)
        for module in model.modules()
        if isinstance(module, _BatchNorm)
    ]
    result, failure = None, None
    try:
        with torch.no_grad(), in_eval_mode(model), _with_random_state_kept(model):
            result = copied(model(*copied(call.args), **copied(call.kwargs)))
    except Exception as error:  # models complain in many ways
        failure = error
    finally:
        for handle in handles:
            handle.remove()
    return Run(outputs, normed, result, failure)


def copied(tree: Any) -> Any:
    """The same structure with clones of its tensors."""
    return tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), tree)


def same(one: Any, other: Any) -> bool:
    """Whether all tensors in two structures are equal, bit for bit; NaN equals NaN."""
    ours, theirs = tree_leaves(one), tree_leaves(other)
    return len(ours) == len(theirs) and all(map(_same_leaf, ours, theirs))


def _same_leaf(one: Any, other: Any) -> bool:
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return isinstance(one, Tensor) == isinstance(other, Tensor)
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    if one.is_meta or one.layout != torch.strided or one.is_quantized:
        return True  # no values to compare, or none that can be
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _shapes(tree: Any) -> str:
    if isinstance(tree, Tensor):
        return str(tuple(tree.shape))
    if isinstance(tree, (list, tuple)):
        return f"[{', '.join(map(_shapes, tree))}]"
    return type(tree).__name__


@contextmanager
def _with_random_state_kept(model: nn.Module) -> Iterator[None]:
    """So that all passes draw the same numbers, where a model draws in eval mode too."""
    tensors = chain(model.parameters(), model.buffers())
    devices = {tensor.device.index for tensor in tensors if tensor.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)):
        yield

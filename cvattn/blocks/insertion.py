"""Attention into any CNN: inserted after a layer, in place, and out again."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cvattn.blocks.self_attention2d import SelfAttention2d

Model = TypeVar("Model", bound=nn.Module)

_CHILD = "inserted_attention"
_SIZE = (64, 96)  # of the dry run's image; not square, so that a (B, H, W, C) layer shows


def insert_attention(
    model: Model,
    *,
    after: str | Iterable[str],
    block: Callable[[int], nn.Module] = SelfAttention2d,
    example: Tensor | None = None,
) -> Model:
    """Put a block behind layers of a CNN, in place; the model is returned too.

    A new block is the identity (gamma = 0), so the outputs stay what they were, bit for bit. It
    becomes a child of its layer, ``<layer>.inserted_attention``: the names of all other parameters
    stay, and a state dict from before the insertion still loads (the block then keeps its values).
    The channels come from one pass of ``example`` through the model in eval mode.

    Insert before ``torch.compile``. The layer is watched by a forward hook, which acts when the
    layer is called as a module, as it is everywhere but in hand-written ``layer.forward(x)``.

    Args:
        model: any module whose chosen layers give feature maps (B, C, H, W).
        after: name of a layer as in ``model.named_modules()``, several, or patterns, in which * and
            ? stand for parts of one name: "layer3", "layer[34]", "features.*.block".
        block: channels -> module; ``SelfAttention2d.biggan``, a ``functools.partial``, or your own.
        example: input (B, C, H, W) for the pass; None: zeros (1, C, 64, 96), with the C of the
            model's first convolution.

    Raises:
        ValueError: no such layer (with near matches), one that has attention already, one that does
            not give a feature map or does not run exactly once; a pass that needs an example.
    """
    names = _find(model, [after] if isinstance(after, str) else list(after))
    layers = {name: model.get_submodule(name) for name in names}
    for name, layer in layers.items():
        if hasattr(layer, _CHILD):
            raise ValueError(
                f"{name!r} has attention already; remove_attention(model) takes it out"
            )
    maps = _dry_run(model, layers, example)
    # All are made before the first is put in: one that fails leaves the model as it was.
    blocks = {name: block(found.shape[1]).to(found) for name, found in maps.items()}
    for name, layer in layers.items():
        inserted = blocks[name].train(layer.training)
        inserted.register_load_state_dict_pre_hook(_keep_if_absent)
        layer.add_module(_CHILD, inserted)
        if not _runs_its_children(layer):
            layer.register_forward_hook(_attend, prepend=True)  # other hooks see what comes out
    return model


def remove_attention(model: Model) -> Model:
    """Take out, in place, what :func:`insert_attention` put in; the model is as it was before."""
    for layer in list(model.modules()):
        if _CHILD in layer._modules:
            delattr(layer, _CHILD)
            for key, hook in list(layer._forward_hooks.items()):
                if hook is _attend:
                    del layer._forward_hooks[key]
    return model


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(of the inserted blocks, all others): for optimisers that treat what is new differently."""
    new: list[nn.Parameter] = []
    old: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (new if _CHILD in name.split(".") else old).append(parameter)
    return new, old


def _attend(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
    """The hook; not a closure, so that models with it can be pickled and it is found again."""
    return getattr(layer, _CHILD)(output)


def _runs_its_children(layer: nn.Module) -> bool:
    """A Sequential runs the new child by itself, as its last."""
    return type(layer).forward is nn.Sequential.forward


def _keep_if_absent(
    block: nn.Module, state_dict: dict[str, Any], prefix: str, *others: object
) -> None:
    """Loading a state dict from before the insertion: the block's values are not missing there."""
    if not any(key.startswith(prefix) for key in state_dict):
        state_dict.update({prefix + name: value for name, value in block.state_dict().items()})


def _find(model: nn.Module, wanted: Sequence[str]) -> list[str]:
    known = [name for name, _ in model.named_modules() if name]
    found: dict[str, None] = {}
    for pattern in wanted:
        parts = pattern.split(".")
        hits = [
            name
            for name in known
            if len(parts) == name.count(".") + 1
            and all(map(fnmatchcase, name.split("."), parts))
            and _CHILD not in name.split(".")
        ]
        if not hits:
            near = get_close_matches(pattern, known) or known[:8]
            raise ValueError(
                f"{type(model).__name__} has no layer {pattern!r}; did you mean {', '.join(near)}?"
            )
        found.update(dict.fromkeys(hits))
    return list(found)


def _dry_run(
    model: nn.Module, layers: dict[str, nn.Module], example: Tensor | None
) -> dict[str, Tensor]:
    """What each layer gives for the example, checked to be one feature map."""
    outputs: dict[str, list[Any]] = {name: [] for name in layers}
    handles = [
        layer.register_forward_hook(lambda _, __, output, name=name: outputs[name].append(output))
        for name, layer in layers.items()
    ]
    given = _zeros_for(model) if example is None else example
    failure: Exception | None = None
    try:
        with torch.no_grad(), _in_eval_mode(model):
            model(given)
    except Exception as error:  # behind the layers it may fail: there is nothing to learn there
        failure = error
    finally:
        for handle in handles:
            handle.remove()
    for name, found in outputs.items():
        if failure is not None and not found:
            raise ValueError(
                f"the model does not take an input of {tuple(given.shape)}, so the channels of "
                f"{name!r} are not known; give example= an input that it takes ({failure})"
            ) from failure
        _check_map(name, found, tuple(given.shape))
    return {name: found[0] for name, found in outputs.items()}


def _check_map(name: str, found: Sequence[Any], given: tuple[int, ...]) -> None:
    if len(found) != 1:
        raise ValueError(
            f"{name!r} runs {len(found)} times in one pass; attention needs a layer that runs once"
        )
    output = found[0]
    if not isinstance(output, Tensor) or output.ndim != 4:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"{name!r} gives {shape}, not a feature map (batch, C, height, width)")
    # Of an image that is not square, the height and width can be told from the channels.
    wide, (_, one, two, three) = given[-1] / given[-2], output.shape
    if abs(two / one / wide - 1) < 0.2 < abs(three / two / wide - 1):
        raise ValueError(
            f"{name!r} gives {tuple(output.shape)} for an input of {given}: channels last, not a "
            "feature map (batch, C, height, width)"
        )


def _zeros_for(model: nn.Module) -> Tensor:
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        raise ValueError(
            f"{type(model).__name__} has no convolution to tell the channels of its input; give "
            "example= an input"
        )
    return first.weight.new_zeros(1, first.in_channels, *_SIZE)


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Batch norms keep their statistics; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training

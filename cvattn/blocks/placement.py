"""Where in a model a block can stand, found out by dry runs rather than guessed."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from cvattn.blocks.dry_run import Call, Run, copied, run, same
from cvattn.blocks.map_checks import SIDES
from cvattn.blocks.upkeep import CHILD

_TRIALS = 5  # places that are tried to name one that works


class Place(NamedTuple):
    """A layer that a block can follow.

    Attributes:
        map: what the layer gives, (B, C, H, W).
        by_hook: a hook has to run the block; otherwise the layer runs a new child by itself.
    """

    map: Tensor
    by_hook: bool


class Places(NamedTuple):
    """Of all the layers asked for, with what the model gave before anything was put in.

    Attributes:
        steady: the model gives the same twice, bit for bit, so that outputs can be compared.
    """

    of: dict[str, Place]
    plain: Run
    steady: bool


class _Refused(Exception):
    def __init__(self, name: str, reason: str, *, hint: bool = True) -> None:
        super().__init__(reason)
        self.name = name
        self.hint = hint


def find_places(model: nn.Module, layers: Mapping[str, nn.Module], call: Call) -> Places:
    """How a block can follow each of the layers; the model is as before.

    Raises:
        ValueError: a layer that no block can follow, with a place near it that works.
    """
    try:
        return _find_places(model, layers, call)
    except _Refused as refused:
        place = _another_place(model, refused.name, call) if refused.hint else None
        hint = f"; insert after {place!r} instead" if place else ""
        raise ValueError(f"{refused}{hint}") from refused.__cause__


def _find_places(model: nn.Module, layers: Mapping[str, nn.Module], call: Call) -> Places:
    plain, again = run(model, call, layers), run(model, call, layers)
    steady = same(plain.outputs, again.outputs) and same(plain.result, again.result)
    for name in layers:
        _check_layer(model, name, plain, call)
    # A stand-in that gives back what it gets shows whether a layer runs its children by itself.
    stand_ins = {name: _StandIn() for name in layers}
    try:
        for name, layer in layers.items():
            layer.add_module(CHILD, stand_ins[name])
        tried = run(model, call, layers)
    finally:
        for layer in layers.values():
            layer._modules.pop(CHILD, None)
    places = {}
    for name, (given,) in plain.outputs.items():
        calls = stand_ins[name].calls
        right = not calls or (len(calls) == 1 and _fits(calls[0], given, steady))
        if not right or (steady and not same(tried.outputs.get(name), [given])):
            raise _Refused(
                name,
                f"{name!r} ({type(layers[name]).__name__}) uses its children in a way of its own: "
                "a block among them would not run just once, on what the layer gives",
            ) from tried.failure
        places[name] = Place(given, by_hook=not calls)
    if type(tried.failure) is not type(plain.failure) or (
        steady and not same(tried.result, plain.result)
    ):
        raise _Refused(
            next(iter(layers)),
            f"{type(model).__name__} gives something else when {list(layers)} have a new child",
        ) from tried.failure
    return Places({name: places[name] for name in layers}, plain, steady)


class _StandIn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((copied(args), kwargs))
        return args[0] if args else None


def _fits(call: tuple[tuple[Any, ...], dict[str, Any]], given: Tensor, steady: bool) -> bool:
    """Called with nothing but the layer's output."""
    args, kwargs = call
    if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
        return False
    return same(args[0], given) if steady else args[0].shape == given.shape


def _check_layer(model: nn.Module, name: str, plain: Run, call: Call) -> None:
    outputs = plain.outputs.get(name, [])
    if plain.failure is not None and not outputs:
        raise _Refused(
            name,
            f"the model does not take an input of {call}, so the channels of {name!r} are not "
            f"known; give example= an input that it takes ({plain.failure})",
            hint=False,
        ) from plain.failure
    if len(outputs) != 1:
        raise _Refused(
            name,
            f"{name!r} runs {len(outputs)} times in one pass; attention needs a layer that runs "
            "once",
        )
    _check_map(name, outputs[0], call)
    parts = name.split(".")
    for prefix in (".".join(parts[: depth + 1]) for depth in range(len(parts))):
        if _is_norm(model.get_submodule(prefix)):
            raise _Refused(
                name,
                f"{prefix!r} is a norm ({type(model.get_submodule(prefix)).__name__}), which other "
                "tools rebuild or fuse (SyncBatchNorm.convert_sync_batchnorm, frozen norms, "
                "fuse_modules), and would lose its block",
            )
    if name in plain.normed and list(model.get_submodule(name).parameters(recurse=False)):
        raise _Refused(
            name,
            f"{name!r} gives its output to a batch norm, which fusion (fuse_modules) would multiply"
            " into it, over a block between the two",
        )


def _is_norm(layer: nn.Module) -> bool:
    """One of torch's, or another with a state of its own that is called one."""
    state = layer._parameters or layer._buffers
    names = (base.__name__.lower() for base in type(layer).__mro__)
    return isinstance(layer, _NormBase) or bool(state and any("norm" in name for name in names))


def _check_map(name: str, output: Any, call: Call) -> None:
    if not isinstance(output, Tensor) or output.ndim != call.dimensions + 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        sides = ", ".join(SIDES[call.dimensions])
        raise _Refused(name, f"{name!r} gives {shape}, not a feature map (batch, C, {sides})")
    if not output.is_floating_point():
        kind = str(output.dtype).removeprefix("torch.")
        raise _Refused(
            name,
            f"{name!r} gives a map of {kind}; attention needs floating point"
            + ("; insert before quantisation" if output.is_quantized else ""),
            hint=False,
        )
    if call.image_size is None or call.dimensions != 2:
        return
    # Of an image that is not square, the height and width can be told from the channels.
    wide, (_, one, two, three) = call.image_size[1] / call.image_size[0], output.shape
    if abs(two / one / wide - 1) < 0.2 < abs(three / two / wide - 1):
        raise _Refused(
            name,
            f"{name!r} gives {tuple(output.shape)} for an input of {call}: channels last, not a "
            "feature map (batch, C, height, width)",
            hint=False,
        )


def _another_place(model: nn.Module, name: str, call: Call) -> str | None:
    """A layer near this one that a block can follow, tried: within it, beside it, behind it."""
    layers = {each: module for each, module in model.named_modules() if each}
    seen = run(model, call, layers)
    ended = list(seen.outputs)
    if name not in ended:
        return None
    index, map_ = ended.index(name), seen.outputs[name][-1]
    last = [each for each in ended[:index] if each.startswith(f"{name}.")][-1:]
    within = [each for each in last if same(seen.outputs[each], [map_])]
    behind, parent = ended[index + 1 :], name.rpartition(".")[0]
    beside = [each for each in behind if each.rpartition(".")[0] == parent]
    trials = 0
    for each in within + beside + [each for each in behind if each not in beside]:
        try:
            _check_layer(model, each, seen, call)
            trials += 1
            _find_places(model, {each: layers[each]}, call)
        except _Refused:
            if trials == _TRIALS:
                return None
            continue
        return each
    return None


def check_unchanged(
    model: nn.Module, blocks: Mapping[str, nn.Module], call: Call, before: Places
) -> None:
    """Run the model with its blocks: each runs once, and those that change nothing change nothing.

    Raises:
        ValueError: otherwise.
    """
    inputs: dict[str, list[Any]] = {name: [] for name in blocks}
    handles = [
        block.register_forward_pre_hook(lambda _, args, name=name: inputs[name].append(args[0]))
        for name, block in blocks.items()
    ]
    try:
        after = run(model, call, blocks)
    finally:
        for handle in handles:
            handle.remove()
    if after.failure is not None and before.plain.failure is None:
        raise ValueError(
            f"the model fails with a block after {_names(blocks)}: {after.failure}"
        ) from after.failure
    for name in blocks:
        times = len(after.outputs.get(name, []))
        if times != 1:
            raise ValueError(f"the block after {name!r} runs {times} times in one pass")
    identity = all(
        _finite(given) and same(given, after.outputs[name]) for name, given in inputs.items()
    )
    if before.steady and identity and not same(after.result, before.plain.result):
        raise ValueError(
            f"the output of {type(model).__name__} changes with blocks after {_names(blocks)}, "
            "though they give back what they get"
        )


def _finite(given: Sequence[Tensor]) -> bool:
    return all(each.is_meta or bool(torch.isfinite(each).all()) for each in given)


def _names(blocks: Mapping[str, nn.Module]) -> str:
    return ", ".join(map(repr, blocks))

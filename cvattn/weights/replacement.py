"""Attention of other libraries in a network, exchanged for ours in place, with its weights."""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TypeVar

from torch import nn

from cvattn.blocks.layer_names import find_layers
from cvattn.blocks.wrapped import check_changeable, check_initialised, check_unwrapped
from cvattn.maps.looks import is_ours, unseen_attention
from cvattn.weights.known_attention import drop_in_maker

Model = TypeVar("Model", bound=nn.Module)


def replace_attention(model: Model, *, layers: str | Iterable[str] | None = None) -> Model:
    """Exchange the attention modules of a network for ours, in place; the model is returned too.

    Known are diffusers' ``Attention``, MONAI's ``SpatialAttentionBlock`` and ``SABlock``, and by
    their parts the common ``Self_Attn`` (``query_conv``, ``key_conv``, ``value_conv``, ``gamma``)
    and BigGAN's ``Attention`` (``theta``, ``phi``, ``g``, ``o``, ``gamma``), whatever their class
    is called: a copy of each of these is tried first. Outputs, gradients, weights, dtype, device,
    ``requires_grad`` and train/eval mode stay; memory is linear in the positions. The network calls
    what is there as before, and what ours cannot honour in such a call is refused there.

    Parameters are new ones, under names of their own: load a state dict of the old names before,
    and make the optimiser after. A module that is used in several places is replaced by one. Of a
    ``Self_Attn`` that returns its N x N weights too, ours does so as well, and stores them. Under a
    spectral norm outputs are equal in eval mode; in training they are where its power iterations
    have converged: the older of torch's two, and BigGAN's, are half a step or one behind ours.

    Args:
        model: any module that has such modules in it; not one of them itself, for which
            ``cvattn.weights`` has importers.
        layers: name of a module, several, or patterns, as in ``model.named_modules()``; None = all
            that are known. A warning then names those that stay, and why: options that ours has
            not, hooks, adapters, weights that others share, classes that are not known.

    Raises:
        ValueError: no such module, or nothing to replace; one that was named and has to stay, with
            the reason; a model that is wrapped, compiled, scripted or lazy. The model is then as it
            was.
    """
    check_unwrapped(model)
    check_initialised(model)
    named = None if layers is None else find_layers(model, layers)
    chosen = None if named is None else {model.get_submodule(name) for name in named}
    owners = _Owners(model)
    made: dict[nn.Module, nn.Module] = {}
    left: dict[str, str] = {}
    for name, module in _known(model, made):
        if chosen is not None and module not in chosen:
            continue
        try:
            check_changeable(model, [name])
            owners.check_alone(module)
            made[module] = _made(module)
        except (ValueError, TypeError) as error:
            left[name] = str(error)
    if named is not None:
        _check_all_made(model, named, made, left)
    stay = _those_that_stay(model, made, left)
    if not made:
        raise ValueError(
            f"{type(model).__name__} has no attention to replace" + (f"; {stay}" if stay else "")
        )
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child in made:
                parent._modules[key] = made[child]
    if named is None and stay:
        warnings.warn(f"attention that stays as it is: {stay}", stacklevel=2)
    return model


def _known(model: nn.Module, made: dict[nn.Module, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Modules that are known, outer ones first, but for what is inside of one that was made."""
    inside: set[nn.Module] = set()
    for name, module in list(model.named_modules()):
        if name and module not in inside and drop_in_maker(module) is not None:
            yield name, module
        if module in made or is_ours(module):
            inside.update(module.modules())


def _made(module: nn.Module) -> nn.Module:
    for name, part in module.named_modules():
        if part._backward_hooks or part._backward_pre_hooks:
            raise ValueError(f"{name or 'it'} has backward hooks, which would be lost: remove them")
    maker = drop_in_maker(module)
    assert maker is not None
    return maker(module)


class _Owners:
    """Who holds each module and parameter of a model: copies of what is shared would go apart."""

    def __init__(self, model: nn.Module) -> None:
        self._of_modules: dict[nn.Module, set[nn.Module]] = defaultdict(set)
        self._of_parameters: dict[int, set[nn.Module]] = defaultdict(set)
        self._kept: set[nn.Module] = set()
        for holder in model.modules():
            for child in holder.children():
                self._of_modules[child].add(holder)
            for parameter in holder.parameters(recurse=False):
                self._of_parameters[id(parameter)].add(holder)
            for name, value in vars(holder).items():
                if not name.startswith("_") and isinstance(value, (list, tuple, dict)):
                    items = value.values() if isinstance(value, dict) else value
                    self._kept.update(item for item in items if isinstance(item, nn.Module))

    def check_alone(self, module: nn.Module) -> None:
        """Raise ValueError if something inside of it is elsewhere in the model too.

        A plain list is no place that could be exchanged: its module would go on being called.
        """
        if module in self._kept:
            raise ValueError("it is also in a plain list, tuple or dict of the model")
        inside = set(module.modules())
        for name, part in module.named_modules():
            if part is not module and not self._of_modules[part] <= inside:
                raise ValueError(f"{name} is shared with another part of the model")
        for name, parameter in module.named_parameters():
            if len(self._of_parameters[id(parameter)]) > 1:
                raise ValueError(f"{name} is shared with another layer")


def _check_all_made(
    model: nn.Module,
    named: list[str],
    made: dict[nn.Module, nn.Module],
    left: dict[str, str],
) -> None:
    inside = {part for module in made for part in module.modules()}
    for name in named:
        module = model.get_submodule(name)
        if name in left:
            raise ValueError(f"{name} cannot be replaced: {left[name]}")
        if module not in inside:
            raise ValueError(
                f"{name} is a {type(module).__qualname__}, which is no attention that is known"
            )


def _those_that_stay(
    model: nn.Module, made: dict[nn.Module, nn.Module], left: dict[str, str]
) -> str:
    ours = filter(is_ours, model.modules())
    known = [model.get_submodule(name) for name in left]
    unknown = unseen_attention(model, [*made, *ours, *known])
    said = [f"{name} ({reason})" for name, reason in left.items()]
    return "; ".join([*said, *([f"not known: {unknown}"] if unknown else [])])

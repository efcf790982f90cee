"""SAGAN's and BigGAN's blocks, which everybody's code has its own class of, tried before they go.

Classes with the parts of such a block can compute something else: other scores, criss-cross, no
transposition. So a copy of the module is called once, in float64 on a small map, and what it gives
has to be what ours gives.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm

from cvattn.blocks import SelfAttention2d
from cvattn.core.copies import copy_with
from cvattn.weights.drop_ins import ClassDropIn, PairDropIn
from cvattn.weights.sagan_blocks import BIGGAN, SELF_ATTN, from_biggan, from_self_attn

_GAMMA = 0.75  # any but 0, at which the block gives back what it gets
_EXACT = 1e-9


def has_parts_of_self_attn(module: nn.Module) -> bool:
    """``query_conv``, ``key_conv``, ``value_conv`` and ``gamma``."""
    return _has(module, SELF_ATTN)


def has_parts_of_biggan(module: nn.Module) -> bool:
    """``theta``, ``phi``, ``g``, ``o`` and ``gamma``."""
    return _has(module, BIGGAN)


def _has(module: nn.Module, layers: Mapping[str, str]) -> bool:
    return module._modules.keys() >= set(layers.values()) and "gamma" in module._parameters


def drop_in_for_gan(module: nn.Module) -> nn.Module:
    """Ours in the place of either block, called as it is and giving what it gives.

    Raises:
        ValueError: the module computes, takes or gives something else; hooks.
    """
    if has_parts_of_self_attn(module):
        return _drop_in(module, from_self_attn, SELF_ATTN)
    return _drop_in(module, from_biggan, BIGGAN)


def _drop_in(
    module: nn.Module,
    take: Callable[[Mapping[str, Tensor]], SelfAttention2d],
    layers: Mapping[str, str],
) -> nn.Module:
    _check_hooks(module)
    ours = take(module.state_dict())
    wants_class = _takes_class(module)
    gives_pair = _try(module, take, wants_class)
    for name, source in {**layers, "gamma": None}.items():
        _follow(ours, name, module if source is None else module.get_submodule(source))
    placed: nn.Module = ours
    if gives_pair:
        placed = PairDropIn(ours)
    elif wants_class:
        placed = ClassDropIn(ours)
    return placed.train(module.training)


def _check_hooks(module: nn.Module) -> None:
    for name, part in module.named_modules():
        hooks = [
            hook for hook in part._forward_pre_hooks.values() if type(hook) is not SpectralNorm
        ]
        if hooks or part._forward_hooks or "forward" in vars(part):
            raise ValueError(
                f"{name or 'it'} has hooks or a forward of its own, which may change what it "
                "gives: remove them first"
            )


def _takes_class(module: nn.Module) -> bool:
    """Whether ``forward`` takes (x, y=None), not x alone."""
    given = list(inspect.signature(module.forward).parameters.values())
    plain = all(each.kind is each.POSITIONAL_OR_KEYWORD for each in given)
    if plain and len(given) == 1:
        return False
    if plain and len(given) == 2 and given[1].name == "y" and given[1].default is None:
        return True
    raise ValueError(
        f"its forward takes ({', '.join(map(str, given))}); expected (x), or (x, y=None) as "
        "BigGAN's"
    )


def _try(
    module: nn.Module, take: Callable[[Mapping[str, Tensor]], SelfAttention2d], wants_class: bool
) -> bool:
    """Whether the module gives its weights too, having checked that it gives what ours gives."""
    try:
        theirs: Any = copy_with(module, _exact).eval()
        theirs.gamma.data.fill_(_GAMMA)
        ours = take(theirs.state_dict()).eval()
        x = torch.arange(2 * ours.in_channels * 4 * 6, dtype=torch.float64).mul(0.7).cos()
        x = x.view(2, ours.in_channels, 4, 6)  # BigGAN's pools 2x2
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            given = theirs(x, object()) if wants_class else theirs(x)
            output, weights = ours(x, need_weights=True)
    except Exception as error:
        raise ValueError(f"a trial on a small map failed: {error}") from error
    gives_pair = isinstance(given, tuple) and len(given) == 2 and not wants_class
    wanted = (output, weights[:, 0]) if gives_pair else (output,)
    for got, want in zip(given if gives_pair else (given,), wanted, strict=True):
        if not (isinstance(got, Tensor) and got.shape == want.shape and _near(got, want)):
            raise ValueError(
                f"{type(module).__qualname__} has the parts of a SAGAN block and gives something "
                "else than one"
            )
    return gives_pair


def _exact(tensor: Tensor) -> Tensor:
    return tensor.to(
        "cpu", torch.float64 if tensor.is_floating_point() else tensor.dtype, copy=True
    )


def _near(got: Tensor, want: Tensor) -> bool:
    return bool((got - want).abs().max() <= _EXACT * want.abs().max())


def _follow(ours: nn.Module, name: str, source: nn.Module) -> None:
    """``requires_grad`` of one layer's weights, however they are named under a norm, or gamma's."""
    if name == "gamma":
        ours.get_parameter("gamma").requires_grad_(source.get_parameter("gamma").requires_grad)
        return
    own = dict(source.named_parameters())
    for part, parameter in ours.get_submodule(name).named_parameters():
        theirs = own["bias"] if part == "bias" else own.get("weight", own.get("weight_orig"))
        parameter.requires_grad_(theirs is not None and theirs.requires_grad)

"""Whether a model's weights are all that decides what it gives, layer by layer.

An importer copies weights. Adapters, quantisation, pruning, weight and spectral norms, hooks and
layers of one's own add something that would be left behind, so they are refused by name. What they
compute can nearly always be merged into plain weights first, and the error says how.
"""

import re
from collections.abc import Iterator, Mapping

from torch import Tensor, nn
from torch.nn.utils import parametrize

_MERGE = "merge it into a plain layer first (peft: merge_and_unload())"
_OLD_NORMS = (
    "older spectral_norm and weight_norm, pruning and offloading do so: "
    "remove_spectral_norm, remove_weight_norm, prune.remove make a plain layer of it"
)


def check_plain(
    model: nn.Module,
    libraries: tuple[str, ...],
    places: Mapping[str, tuple[type[nn.Module], ...]],
    *,
    kept: tuple[str, ...] = (),
) -> None:
    """Refuse a model of which some part is not what its library makes it of.

    Args:
        model: whose own type was checked.
        libraries: modules whose classes may be in it, such as "torch.nn.modules".
        places: {regular expression for a whole name: types that may stand there}.
        kept: names of tensors that the library's own classes keep, which decide nothing.

    Raises:
        ValueError: the name of a layer, what is wrong with it, and what to do.
    """
    for name, module in model.named_modules(remove_duplicate=False):
        for reason in _reasons(name, module, libraries, places, kept):
            raise ValueError(f"{name or 'the module itself'} {reason}")


def refuse_options(found: Mapping[str, bool], message: str) -> None:
    """Raise ValueError with the names of what is there in place of the message's {}, if any is."""
    names = [name for name, there in found.items() if there]
    if names:
        raise ValueError(message.format(", ".join(names)))


def _reasons(
    name: str,
    module: nn.Module,
    libraries: tuple[str, ...],
    places: Mapping[str, tuple[type[nn.Module], ...]],
    kept: tuple[str, ...],
) -> Iterator[str]:
    if parametrize.is_parametrized(module):
        names = [name for name, _ in module.parametrizations.named_children()]  # type: ignore[union-attr]
        yield (
            f"has a parametrization of {', '.join(names)}: call "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, name) first"
        )
    kind = type(module)
    full_name = f"{kind.__module__}.{kind.__qualname__}"
    expected = next((types for at, types in places.items() if re.fullmatch(at, name)), None)
    if expected is not None and kind not in expected:
        wanted = " or ".join(each.__name__ for each in expected)
        yield f"is a {full_name}; expected {wanted}. If it wraps one, {_MERGE}"
    if not full_name.startswith(tuple(f"{each}." for each in libraries)):
        yield f"is a {full_name}, which may compute anything; if it wraps a plain layer, {_MERGE}"
    if "forward" in vars(module):
        yield "has a forward of its own, put in place of its class's: take it off first"
    if module._forward_hooks or module._forward_pre_hooks:
        yield f"has forward hooks, which may change what it gives ({_OLD_NORMS}): remove them first"
    for key, value in vars(module).items():
        if isinstance(value, Tensor) and key not in kept:
            yield f"keeps {key} as a computed tensor, not as a parameter ({_OLD_NORMS})"
    for key, parameter in module.named_parameters(recurse=False):
        if type(parameter) is not nn.Parameter:
            yield (
                f"has {key} as a {type(parameter).__name__} (lazy, sharded or quantised); expected "
                "an ordinary nn.Parameter"
            )
        if parameter.is_meta:
            yield f"has {key} on the meta device, without values: load its weights first"

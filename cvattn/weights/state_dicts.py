"""One block's tensors out of a state dict, by the names that its code gives them."""

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from cvattn.blocks import SelfAttention2d


def take(
    state_dict: Mapping[str, Tensor],
    prefix: str,
    wanted: Iterable[str],
    *,
    layers: Iterable[str] = (),
) -> dict[str, Tensor]:
    """What stands under a prefix, all of it and nothing else, without the prefix.

    Args:
        state_dict: of the block, or of a model that contains it.
        prefix: what stands before the block's names.
        wanted: these names.
        layers: of the block, by which it is found elsewhere; () if it can be nowhere else.

    Raises:
        ValueError: names that are missing or unknown, with near matches; tensors without numbers.
    """
    wanted = list(wanted)
    found = {key.removeprefix(prefix): key for key in state_dict if key.startswith(prefix)}
    missing = [name for name in wanted if name not in found]
    unknown = [name for name in found if name not in wanted]
    if missing or unknown:
        said = [f"{prefix}{name} is missing" for name in missing]
        said += [f"{prefix}{name} is unknown{_near(name, missing or wanted)}" for name in unknown]
        more = f"; and {len(said) - 12} more" if len(said) > 12 else ""
        raise ValueError("; ".join(said[:12]) + more + _elsewhere(state_dict, prefix, list(layers)))
    tensors = {name: state_dict[found[name]].detach() for name in wanted}
    for name, tensor in tensors.items():
        if tensor.is_meta or tensor.is_quantized:
            kind = "quantized" if tensor.is_quantized else "on the meta device"
            raise ValueError(f"{prefix}{name} is {kind}; expected ordinary numbers")
    return tensors


def pointwise(name: str, weight: Tensor, dimensions: Iterable[int] = (2,)) -> Tensor:
    """The weight of a 1x1 convolution, as one of two dimensions.

    Args:
        name: of the weight, for the message.
        weight: (outputs, inputs, 1, ...).
        dimensions: how many of the map the convolution may have.

    Raises:
        ValueError: the weight is of something else.
    """
    if weight.ndim - 2 not in dimensions or any(side != 1 for side in weight.shape[2:]):
        shapes = [f"(outputs, inputs{', 1' * number})" for number in dimensions]
        raise ValueError(
            f"{name} has the shape {tuple(weight.shape)}; expected that of a 1x1 convolution, "
            + " or ".join(shapes)
        )
    return weight.flatten(1)[:, :, None, None]


def block_of(
    make: Callable[[], SelfAttention2d], state: Mapping[str, Tensor], like: Tensor
) -> SelfAttention2d:
    """The block that ``make`` gives with a state of ours, where and of what dtype ``like`` is.

    Biases that the state has not are taken off. Draws no random number.

    Raises:
        ValueError: the tensors do not fit each other.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # what is drawn is thrown away
        block = make()
    for name, layer in block.named_modules():
        if isinstance(layer, nn.Conv2d) and f"{name}.bias" not in state:
            layer.register_parameter("bias", None)
    block.to(device=like.device, dtype=like.dtype)
    try:
        block.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the tensors do not fit each other: {error}") from error
    return block


def _near(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _elsewhere(state_dict: Mapping[str, Tensor], prefix: str, layers: list[str]) -> str:
    """Where in a larger state dict such a block is, if not here."""
    if not layers:
        return ""
    known = dict.fromkeys(f".{key.rpartition('.')[0]}" for key in state_dict)
    first = f".{layers[0]}"
    starts = [each.removesuffix(first) for each in known if each.endswith(first)]
    places = [each for each in starts if all(f"{each}.{layer}" in known for layer in layers)]
    others = [repr(f"{place}.".removeprefix(".")) for place in places]
    others = [each for each in others if each != repr(prefix)]
    return f"; such a block is at prefix={' and '.join(others)}" if others else ""

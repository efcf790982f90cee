"""A network of timm by its name, with all that it takes to use it on pictures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from cvattn.inference.errors import InferenceError
from cvattn.models.weight_files import load_weights, name_in_order
from cvattn.system import did_you_mean, is_offline

_IMAGENET = 1000  # classes
_WAYS_OUT = (
    "--weights FILE takes a state dict or checkpoint of it, or names an installed package that has "
    "one; --random-weights shows it untrained"
)


class TimmNetwork(NamedTuple):
    """A network of timm, in eval mode.

    Attributes:
        preprocess: a PIL image -> (C, H, W) as the network takes it, by timm's data config.
        class_names: of ImageNet, where it has as many outputs; else None.
        forward: (network, images) -> logits; features in a tuple where it has no classes.
        weights: which it has, in words.
    """

    network: nn.Module
    preprocess: Callable[[Any], Tensor]
    class_names: Sequence[str] | None
    forward: Callable[[nn.Module, Tensor], Any]
    weights: str


def open_timm(name: str, *, weights: str | None = None, random: bool = False) -> TimmNetwork:
    """A network by its timm name, such as "vit_tiny_patch16_224", with or without a tag.

    Args:
        weights: file with the state dict of that network, or a checkpoint of timm's that has it, or
            the name of an installed package with one such file (``find_weights``); None = those
            that timm gives for the name.
        random: leave it untrained; only when asked for.

    Raises:
        InferenceError: no network of that name; no weights, and what to do.
    """
    import timm
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    if not timm.is_model(name):
        known = timm.list_models()
        near = did_you_mean(name.partition(".")[0], known)
        hint = near if "did you mean" in near else "; timm.list_models() lists them"
        raise InferenceError(f"timm {timm.__version__} has no network {name!r}{hint}")
    if weights is not None:
        network, told = _of_file(name, weights)
    elif random:
        network, told = _made(name), "random weights, untrained"
    else:
        network, told = _pretrained(name), "timm's weights"
    network.eval()
    preprocess = create_transform(**resolve_model_data_config(network), is_training=False)
    outputs = network.num_classes
    return TimmNetwork(
        network,
        preprocess,
        _imagenet_names() if outputs == _IMAGENET else None,
        _answer if outputs else _features,
        told,
    )


def _pretrained(name: str) -> Any:
    if is_offline():
        raise InferenceError(
            f"timm/{name}: its weights come from the network, which CVATTN_OFFLINE=1 forbids; "
            f"{_WAYS_OUT} (HF_HUB_OFFLINE=1 instead allows those that were downloaded before)"
        )
    try:
        return _made(name, pretrained=True)
    except Exception as error:  # the clients of the hub raise nearly anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InferenceError(
            f"timm/{name}: its weights cannot be had ({reason}); {_WAYS_OUT}"
        ) from error


def _of_file(name: str, given: str) -> tuple[Any, str]:
    try:
        state, path, told = load_weights(given)
    except ValueError as error:
        raise InferenceError(f"--weights {given}: {error}") from error
    network = _made(name, **_classes(name, state))
    expected = network.state_dict()
    try:
        if not state.keys() & expected.keys() and path.suffix != ".safetensors":
            # As other code names them; a safetensors file keeps no order to go by.
            state = name_in_order(state, expected)
            told += f", its {len(state)} tensors taken in order"
        network.load_state_dict(state)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InferenceError(f"--weights {given} is not of {name}: {reason}") from error
    return network, told


def _classes(name: str, state: Mapping[str, Tensor]) -> dict[str, int]:
    """``num_classes`` as in the file, by the head that timm says the network has."""
    heads: Any = _made(name).pretrained_cfg["classifier"]
    head = heads if isinstance(heads, str) else next(iter(heads or ()), "")
    rows = state.get(f"{head}.weight")
    if rows is not None:
        return {"num_classes": len(rows)}
    # A file without a head has a network without one; other names are seen to later.
    return {"num_classes": 0} if state.keys() & _made(name).state_dict().keys() else {}


def _made(name: str, **arguments: Any) -> Any:
    import timm

    try:
        return timm.create_model(name, **arguments)
    except RuntimeError as error:
        # As timm says it of a tag that it does not know.
        raise InferenceError(f"timm/{name}: {error}") from error


def _imagenet_names() -> list[str]:
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    # The first of a class's synonyms.
    names = (info.index_to_description(index) for index in range(_IMAGENET))
    return [str(name).partition(",")[0] for name in names]


def _answer(network: nn.Module, images: Tensor) -> Tensor:
    return network(images)


def _features(network: nn.Module, images: Tensor) -> tuple[Tensor]:
    # As they are, they would be taken for logits.
    return (network(images),)

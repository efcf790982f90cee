"""The feature maps of a CNN of timm, up to a stride."""

import re
from typing import Any

import torch
from torch import nn

from cvattn.models.timm_cnn import check_name


def timm_features(name: str, in_channels: int, stride: int) -> tuple[nn.Module, int]:
    """A CNN of timm that gives one map, the last that is ``stride`` times smaller than the image.

    What follows that map is left out.

    Returns:
        the network, whose output is a list of that map, and the map's channels.

    Raises:
        ValueError: no such network (with near matches), one that gives no such maps, no map of that
            stride (with those that there are).
    """
    import timm

    check_name(name, weights=False)
    options: dict[str, Any] = {"features_only": True, "in_chans": in_channels}
    try:
        with torch.device("meta"):
            shapes: Any = timm.create_model(name, **options)
        strides = shapes.feature_info.reduction()
    except (RuntimeError, AttributeError, TypeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"encoder={name} gives no feature maps: {reason}") from error
    if stride not in strides:
        raise ValueError(
            f"stride={stride}: the maps of {name} are {', '.join(map(str, strides))} times smaller "
            "than the image"
        )
    last = len(strides) - 1 - strides[::-1].index(stride)
    network: Any = timm.create_model(name, out_indices=(last,), **options)
    return network, network.feature_info.channels()[0]


def take_features(features: nn.Module, whole: nn.Module) -> None:
    """Give a network of :func:`timm_features` the weights of the same one with its classifier.

    timm flattens some: ``stages.0`` of the whole is ``stages_0`` of the features. Attention that
    was put into the features keeps its weights.

    Raises:
        ValueError: weights that the whole has under another name, which is named.
    """
    given = whole.state_dict()
    state = features.state_dict()
    for key in [key for key in state if ".inserted_attention." not in key]:
        names = (key, re.sub(r"^(\w+)_(\d+)\.", r"\1.\2.", key))
        found = next((name for name in names if name in given), None)
        if found is None:
            raise ValueError(
                f"the weights of {type(whole).__name__} have none for {key} of its feature maps: "
                "choose another encoder, or pretrained=False"
            )
        state[key] = given[found]
    features.load_state_dict(state)

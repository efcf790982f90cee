"""The feature maps of a CNN of timm, up to a stride."""

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

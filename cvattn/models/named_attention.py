"""Attention by its name behind layers of a CNN, as configurations say it."""

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any

from torch import nn

from cvattn.blocks import insert_attention
from cvattn.blocks.dry_run import Call
from cvattn.blocks.layer_names import find_layers
from cvattn.blocks.placement import find_places
from cvattn.models.controls import BLOCKS, ConvolutionControl


def insert_named(
    cnn: nn.Module, attention: Mapping[str, Any], *, image_size: int | None = None
) -> None:
    """Put attention into it, in place, as ``attention`` of :class:`cvattn.models.TimmCNN` says.

    Args:
        image_size: side of the images, for a control whose cost depends on it.
    """
    given = {"after": [], "block": "common"} | dict(attention)
    unknown = set(given) - {"after", "block"}
    if unknown:
        raise ValueError(f"attention: unknown {sorted(unknown)}; expected 'after' and 'block'")
    names = [*BLOCKS, "convolution", "none"]
    if given["block"] not in names:
        near = get_close_matches(str(given["block"]), names) or names
        raise ValueError(f"attention.block={given['block']!r}; did you mean {', '.join(near)}?")
    if not given["after"] or given["block"] == "none":
        return
    if given["block"] != "convolution":
        insert_attention(cnn, after=given["after"], block=BLOCKS[given["block"]])
        return
    if image_size is None:
        raise ValueError(
            "attention.block='convolution' costs what attention does at one size of the images: "
            "set input_size, to which they are enlarged"
        )
    for name, positions in _positions(cnn, given["after"], image_size).items():
        insert_attention(cnn, after=name, block=partial(ConvolutionControl, positions=positions))


def _positions(cnn: nn.Module, after: str | Iterable[str], image_size: int) -> dict[str, int]:
    """H * W of the maps that these layers give, of square images."""
    first = next(module for module in cnn.modules() if isinstance(module, nn.Conv2d))
    example = first.weight.new_zeros(1, first.in_channels, image_size, image_size)
    layers = {name: cnn.get_submodule(name) for name in find_layers(cnn, after)}
    places = find_places(cnn, layers, Call.of(example)).of
    return {name: math.prod(place.map.shape[2:]) for name, place in places.items()}

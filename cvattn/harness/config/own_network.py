"""A network of the user's own: the values that its constructor takes, and the data knows."""

import inspect
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cvattn.harness.config.checks import annotation_of, fits, resolve_target

# What is filled in unasked, under these names.
_FILLED = ("num_classes", "in_channels", "image_size")


def open_own(node: DictConfig) -> None:
    """Leave open, for the data to say, what the constructor takes of it and the user has not."""
    target = resolve_target("model", node.get("_target_", "???"))
    parameters = inspect.signature(target).parameters
    for key in _FILLED:
        if key in parameters and key not in node:
            node[key] = "???"


def fill_own(node: DictConfig, known: Mapping[str, Any]) -> None:
    """Fill what is open: of square images one side, where a number is asked for.

    What these data do not know stays as the constructor has it.
    """
    target = resolve_target("model", node._target_)
    parameters = inspect.signature(target).parameters
    for key in _FILLED:
        if key not in parameters or not OmegaConf.is_missing(node, key):
            continue
        value = known.get(key)
        if (
            isinstance(value, list)
            and len(set(value)) == 1
            and not fits(value, annotation_of(target, parameters[key]))
        ):
            value = value[0]
        if value is not None:
            node[key] = value
        elif parameters[key].default is not inspect.Parameter.empty:
            del node[key]


def place_of(target: Any) -> str:
    """Where a class or function is, as a checkpoint and ``--network`` name it: ``my_net:Net``."""
    return f"{target.__module__}:{target.__qualname__}"

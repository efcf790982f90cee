"""Checkpoints of networks that make images, whatever their kind."""

import os
from typing import Any, cast

from torch import nn

from cvattn.checkpoint import Own
from cvattn.inference.errors import InferenceError
from cvattn.inference.flow_generator import FlowGenerator
from cvattn.inference.gan_generator import GANGenerator
from cvattn.inference.generator import Generator
from cvattn.inference.image_network import facts_of, makes_images
from cvattn.inference.network import open_network
from cvattn.models.making import missing_of_a_pair


def open_generator(
    path: str | os.PathLike[str], device: str = "cpu", *, network: Own | None = None
) -> Generator:
    """The generator of a checkpoint: a :class:`FlowGenerator` or a :class:`GANGenerator`.

    Args:
        network: of a checkpoint of a network of one's own; see :func:`cvattn.load`.

    Raises:
        InferenceError: there is none that can be used.
    """
    return as_generator(open_network(path, device, network=network), str(path))


def as_generator(network: nn.Module, name: str) -> Generator:
    """A network of :func:`open_network` as a generator; ``name`` is for messages.

    Raises:
        InferenceError: it makes no images.
    """
    if not makes_images(network):
        raise InferenceError(
            f"{name} holds a {type(network).__name__} that makes no images; networks that do are "
            "trained with task=flow (model=unet) or task=gan (model=sagan_gan)"
        )
    return generator_of(**facts_of(network, name))


def generator_of(*, network: nn.Module, **facts: Any) -> Generator:
    """The kind of generator that this network is; the arguments are those of its class."""
    kind = FlowGenerator if missing_of_a_pair(network) else GANGenerator
    return kind(network=network, **facts, labelled=bool(cast(Any, network).classes))

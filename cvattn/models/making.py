"""What a network has that makes images, ours or not."""

from torch import nn

_PAIR = ("generator", "discriminator", "score", "noise_dim", "classes")


def is_flow(network: nn.Module) -> bool:
    """Whether it is called with images, times and labels, as a :class:`cvattn.models.UNet` that is
    ``timed``."""
    classes = getattr(network, "classes", None)
    return isinstance(classes, int) and getattr(network, "timed", False) is True


def missing_of_a_pair(network: nn.Module) -> list[str]:
    """The attributes of a generator and its discriminator that it lacks, of those that a
    :class:`cvattn.models.SAGAN` has; none of such a pair."""
    return [part for part in _PAIR if not hasattr(network, part)]

"""What every importer does with a tensor: copy it, and keep it frozen if it was."""

import torch
from torch import Tensor, nn


def set_parameter(owner: nn.Module, name: str, *sources: Tensor, part: int | None = None) -> None:
    """Make ``owner.name`` a parameter: the copy of one tensor, of several packed, or of a third."""
    value = torch.cat([s.detach() for s in sources]) if len(sources) > 1 else sources[0].detach()
    value = value if part is None else value.chunk(3)[part]
    trainable = any(source.requires_grad for source in sources)
    setattr(owner, name, nn.Parameter(value.clone(), requires_grad=trainable))


def copy_parameters(target: nn.Module, source: nn.Module) -> None:
    """Copy the own parameters of a layer of the same shape, and a norm's epsilon."""
    for name, parameter in source.named_parameters(recurse=False):
        set_parameter(target, name, parameter)
    if isinstance(target, nn.LayerNorm) and isinstance(source, nn.LayerNorm):
        target.eps = source.eps

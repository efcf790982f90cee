"""What every importer does with a tensor: copy it, and keep it frozen if it was."""

import torch
from torch import Tensor, nn

_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


def set_parameter(
    owner: nn.Module, name: str, *sources: Tensor, part: int | None = None, parts: int = 3
) -> None:
    """Make ``owner.name`` a parameter: the copy of one tensor, of several packed, or of a part."""
    value = torch.cat([s.detach() for s in sources]) if len(sources) > 1 else sources[0].detach()
    value = value if part is None else value.chunk(parts)[part]
    wanted = owner.get_parameter(name).shape
    if value.shape != wanted:
        raise ValueError(f"{name} has the shape {tuple(value.shape)}; expected {tuple(wanted)}")
    trainable = any(source.requires_grad for source in sources)
    setattr(owner, name, nn.Parameter(value.clone(), requires_grad=trainable))


def copy_parameters(target: nn.Module, source: nn.Module) -> None:
    """Copy all own parameters of a layer of the same shape, and a norm's epsilon.

    Raises:
        ValueError: the source has one that the target lacks, or the other way round; convolutions
            that step or pad otherwise.
    """
    wanted, given = (dict(m.named_parameters(recurse=False)) for m in (target, source))
    if wanted.keys() != given.keys():
        raise ValueError(
            f"{source} has the parameters {', '.join(given) or 'none'}; expected "
            f"{', '.join(wanted) or 'none'}"
        )
    if isinstance(target, nn.Conv2d):
        for key in _GEOMETRY:
            theirs, ours = getattr(source, key), getattr(target, key)
            if theirs != ours:
                raise ValueError(f"{source} has {key}={theirs}; expected {ours}")
    for name, parameter in given.items():
        set_parameter(target, name, parameter)
    if isinstance(target, nn.LayerNorm) and isinstance(source, nn.LayerNorm):
        target.eps = source.eps


def copy_group_norm(target: nn.GroupNorm | None, source: nn.GroupNorm) -> None:
    """Weights and epsilon; one of the two may be our ``MapGroupNorm``."""
    assert target is not None  # made with it, for this
    copy_parameters(target, source)
    target.eps = source.eps


def emptied(module: nn.Module) -> nn.Module:
    """With its parameters on the meta device, to be replaced one by one; buffers stay."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(parameter.to("meta")))
    return module


def filled(module: nn.Module) -> nn.Module:
    """The module, none of whose parameters was forgotten.

    Raises:
        RuntimeError: one was, which is a fault of the importer.
    """
    left = [name for name, parameter in module.named_parameters() if parameter.is_meta]
    if left:
        raise RuntimeError(f"{', '.join(left)}: no weights were copied")
    return module

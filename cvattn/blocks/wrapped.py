"""Models that have been handed to something that no longer looks at their layers."""

import sys
from itertools import chain

import torch
from torch import nn
from torch.nn.parameter import is_lazy


def check_changeable(model: nn.Module, names: list[str]) -> None:
    """Raise ValueError, with what to do, unless a module put into these layers would take part."""
    for name in names:
        parts = name.split(".")
        for depth in range(len(parts) + 1):
            prefix = ".".join(parts[:depth])
            check_unwrapped(model.get_submodule(prefix), prefix)


def check_unwrapped(module: nn.Module, name: str = "") -> None:
    """Raise ValueError if this one module is compiled, scripted, wrapped or lazy."""
    what = repr(name) if name else "the model"
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(
            f"{what} is a {type(module).__name__}; change the module that it was made from, "
            "before TorchScript"
        )
    if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
        raise ValueError(
            f"{what} is compiled; change the module that it was made from, before torch.compile"
        )
    if isinstance(module, nn.parallel.DistributedDataParallel):
        raise ValueError(
            f"{what} is in DistributedDataParallel, which would not average the new gradients; "
            "change the plain module, then wrap it"
        )
    fsdp = sys.modules.get("torch.distributed.fsdp")  # nothing is sharded unless it is loaded
    if fsdp is not None and isinstance(module, (fsdp.FullyShardedDataParallel, fsdp.FSDPModule)):
        raise ValueError(
            f"{what} is sharded (FSDP), which would not shard the new parameters; change the "
            "plain module, then shard it"
        )


def check_initialised(model: nn.Module) -> None:
    """Raise ValueError if there are lazy layers, which have no parameters yet."""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(
                f"{type(model).__name__} has lazy layers, whose shapes are not known yet ({name}); "
                "pass a batch through it first"
            )

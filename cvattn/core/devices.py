"""Where a module is, and what devices can compute with."""

from functools import cache

import torch
from torch import nn


def device_of(module: nn.Module) -> torch.device:
    """The device of the module's first parameter; the CPU for one that has none."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on devices that have no float64 (Apple's)."""
    return _widest(device.type)


@cache
def _widest(device_type: str) -> torch.dtype:
    try:
        torch.empty((), dtype=torch.float64, device=device_type)
    except (TypeError, RuntimeError, NotImplementedError):
        return torch.float32
    return torch.float64

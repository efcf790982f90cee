"""What devices can compute with."""

from functools import cache

import torch


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

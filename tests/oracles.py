"""Slow and independent: attention written with loops, and the measure that comparisons use.

The loop is the one that the library ships for others' tests; it shares no code with what it is
compared with. pytest puts this folder on the path (it holds a conftest.py), so tests say
``from oracles import ...``.
"""

import torch
from torch import Tensor, nn

from cvattn.testing import slow_attention as loop_attention

__all__ = ["assert_hides", "assert_near", "fill", "loop_attention", "scalar"]


def assert_near(actual: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    """Finite, of one shape, and apart by at most ``tolerance`` x the largest expected value."""
    assert actual.shape == expected.shape, f"{what}: {tuple(actual.shape)} {tuple(expected.shape)}"
    assert torch.isfinite(actual).all(), f"{what}: not finite"
    size = expected.abs().max().item()
    assert size > 1e-6, f"{what}: the expected values are all 0, which compares nothing"
    error = (actual.double() - expected.double()).abs().max().item()
    assert error <= tolerance * size, f"{what}: off by {error:.3g}, largest value {size:.3g}"


def assert_hides(mask: Tensor) -> Tensor:
    """The mask, which must hide something and show something for a test to mean anything."""
    assert mask.dtype == torch.bool
    assert mask.any()
    assert not mask.all()
    return mask


def fill(module: nn.Module) -> nn.Module:
    """Every parameter at random: biases and norms that start at 0 or 1 would hide faults."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
    return module


def scalar(output: Tensor) -> Tensor:
    """One number to differentiate; the uneven weights show swapped columns, as a sum would not."""
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    return (output * weights).sum()

"""Slow and independent: attention written with loops, and the measure that comparisons use.

Nothing here calls the library. pytest puts this folder on the path (it holds a conftest.py), so
tests say ``from oracles import ...``.
"""

import math

import torch
from torch import Tensor, nn


def loop_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """(output, weights), one score at a time. Differentiable; for sizes of a few tokens."""
    batch, heads, length, width = query.shape
    key_length = key.shape[2]
    scale = 1.0 / math.sqrt(width) if scale is None else scale
    zero = query.new_zeros(())
    rows, outputs = [], []
    for b in range(batch):
        for h in range(heads):
            for i in range(length):
                powers = {}
                for j in range(key_length):
                    if is_causal and j > i + key_length - length:
                        continue
                    if attn_mask is not None and not pick(attn_mask, b, h, i, j):
                        continue
                    score = torch.dot(query[b, h, i], key[b, h, j]) * scale
                    if attn_bias is not None:
                        score = score + pick(attn_bias, b, h, i, j)
                    powers[j] = score.exp()
                total = sum(powers.values()) if powers else 1.0
                row = torch.stack([powers.get(j, zero) / total for j in range(key_length)])
                rows.append(row)
                terms = [row[j] * value[b, h, j] for j in powers]
                outputs.append(sum(terms) if terms else value.new_zeros(value.shape[-1]))
    shape = (batch, heads, length)
    return torch.stack(outputs).unflatten(0, shape), torch.stack(rows).unflatten(0, shape)


def pick(term: Tensor, b: int, h: int, i: int, j: int) -> Tensor:
    """The entry of a mask or bias, (L, S) or (B, heads, L, S), for one score; size 1 = shared."""
    index = (b, h, i, j)[-term.ndim :]
    return term[tuple(k if size > 1 else 0 for k, size in zip(index, term.shape, strict=True))]


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

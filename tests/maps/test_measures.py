"""Entropy and distance of attention weights, against closed forms."""

import math

import pytest
import torch
from torch import nn

from cvattn.maps import attention_distance, attention_entropy


def test_entropy():
    uniform = torch.full((2, 3, 5, 7), 1 / 7)
    one_hot = nn.functional.one_hot(torch.randint(7, (2, 3, 5)), 7).float()
    assert attention_entropy(uniform).tolist() == pytest.approx([math.log(7)] * 3, abs=1e-6)
    assert attention_entropy(one_hot).tolist() == [0.0] * 3
    mixed = torch.cat([uniform[:, :1], one_hot[:, :1]], dim=1)  # a number for each head
    assert attention_entropy(mixed).tolist() == pytest.approx([math.log(7), 0.0], abs=1e-6)
    half = torch.cat([uniform, one_hot], dim=2)  # rows and samples are averaged
    assert attention_entropy(half).tolist() == pytest.approx([math.log(7) / 2] * 3, abs=1e-6)


def rows(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64).softmax(-1)


def test_distance_is_that_of_a_slow_loop():
    pictures = rows(2, 3, 15, 15).unflatten(-1, (3, 5))
    for head in range(3):
        total = 0.0
        for image in range(2):
            for query in range(15):
                for y in range(3):
                    for x in range(5):
                        apart = math.hypot(query // 5 - y, query % 5 - x)
                        total += pictures[image, head, query, y, x].item() * apart
        assert attention_distance(pictures)[head].item() == pytest.approx(total / 30, rel=1e-9)


def test_distance_of_what_looks_at_itself_and_one_to_the_right():
    itself = torch.eye(15)
    right = itself.roll(1, dims=1)
    right[4::5] = itself[4::5]  # at the border they look at themselves
    pictures = torch.stack([itself, right])[None].unflatten(-1, (3, 5))
    assert attention_distance(pictures).tolist() == pytest.approx([0.0, 0.8])
    sliced = 0.25 * pictures  # as behind prefix tokens that take most of it
    assert attention_distance(sliced).tolist() == pytest.approx([0.0, 0.8])
    with pytest.raises(
        ValueError, match=r"shape \(1, 2, 16, 3, 5\); expected \(batch, heads, H \* W"
    ):
        attention_distance(torch.rand(1, 2, 16, 3, 5))  # a class token's row is still there


def test_entropy_of_masked_weights_has_finite_gradients():
    scores = torch.randn(2, 3, 5, 7, requires_grad=True)
    weights = scores.masked_fill(torch.arange(7) > 4, float("-inf")).softmax(-1)
    attention_entropy(weights).sum().backward()
    assert torch.isfinite(scores.grad).all()
    assert scores.grad[..., :5].abs().min() > 0

"""Entropy, distance and rollout of attention weights, against closed forms."""

import math

import pytest
import torch
from oracles import assert_near
from torch import nn

from cvattn import VisionTransformer
from cvattn.maps import (
    attention_distance,
    attention_entropy,
    attention_rollout,
    capture_attention,
)


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


def test_two_layers_roll_out_to_their_closed_form():
    first, second = rows(2, 3, 7, 7), rows(2, 3, 7, 7)
    eye = torch.eye(7, dtype=torch.float64)
    one = 0.5 * (first.mean(1) + eye)
    two = 0.5 * (second.mean(1) + eye)
    found = attention_rollout({"layers.0": first, "layers.1": second})
    assert_near(found, two @ one)
    assert_near(found.sum(-1), torch.ones(2, 7, dtype=torch.float64))
    weighted = attention_rollout({"a": first, "b": second}, residual=0.2)
    mixed = [0.2 * eye + 0.8 * w.mean(1) for w in (first, second)]
    assert_near(weighted, mixed[1] @ mixed[0])


def test_a_token_that_sees_nothing_keeps_itself():
    weights = rows(1, 2, 5, 5)
    weights[:, :, 3] = 0.0
    assert attention_rollout({"a": weights})[0, 3].tolist() == [0.0, 0.0, 0.0, 1.0, 0.0]


def test_rollout_of_a_vit_finds_the_only_patch_that_its_class_token_hears():
    """Two layers: the first copies the planted patch to its neighbour, the second reads that."""
    planted = torch.eye(10)
    planted[5] = torch.eye(10)[7]  # token 5 looks at 7
    reading = torch.eye(10)
    reading[0] = torch.eye(10)[5]  # the class token looks at 5
    maps = {"0": planted[None, None], "1": reading[None, None]}
    row = attention_rollout(maps)[0, 0, 1:].unflatten(0, (3, 3))
    assert row[1, 1] == pytest.approx(0.25)  # 5 itself
    assert row[2, 0] == pytest.approx(0.25)  # 7, through 5
    assert row.sum() == pytest.approx(0.5)  # and half of it is the class token's own

    vit = VisionTransformer(
        5, image_size=(6, 10), patch_size=2, pool="cls", embed_dim=12, num_heads=3, num_layers=2
    )
    with torch.no_grad(), capture_attention(vit) as captured:
        vit(torch.randn(2, 3, 6, 10))
    assert attention_rollout(captured).shape == (2, 16, 16)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ({}, "no maps"),
        ({"a": torch.zeros(1, 2, 1, 7)}, r"a: weights \(1, 2, 1, 7\) cannot be rolled out"),
        (
            {"a": torch.zeros(1, 2, 7, 7), "b": torch.zeros(1, 2, 5, 5)},
            r"b: weights \(1, 2, 5, 5\)",
        ),
    ],
)
def test_refused(maps, message):
    with pytest.raises(ValueError, match=message):
        attention_rollout(maps)

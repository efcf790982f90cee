"""explain_attention: names, sizes, routes and operations, against counts by hand."""

import pytest
import torch
from torch import nn

from cvattn import Encoder, MultiHeadAttention, SelfAttention2d, Transformer, VisionTransformer
from cvattn.core.attention import attention, record_routes
from cvattn.cost import explain_attention


def shape(*sizes, dtype=torch.float32):
    return torch.empty(sizes, dtype=dtype, device="meta")


def test_a_block_by_hand():
    (cost,) = explain_attention(SelfAttention2d(24), shape(2, 24, 5, 7))
    assert (cost.name, cost.batch, cost.heads) == ("", 2, 1)
    assert (cost.queries, cost.keys, cost.head_dim, cost.value_dim) == (35, 35, 3, 24)
    assert (cost.route, cost.dtype) == ("direct", torch.float32)
    assert cost.flops == 2 * 2 * 35 * 35 * (3 + 24)
    assert cost.reason
    assert "fused" in cost.refused
    # Scaled queries (gone by then), scores and weights.
    assert 2 * 2 * 35 * 35 * 4 <= cost.peak_bytes <= 2 * 2 * 35 * 35 * 4 + 2 * 35 * 3 * 4


def test_pooled_keys_and_heads():
    block = SelfAttention2d(24, qk_channels=6, num_heads=3, kv_pool=2)
    (cost,) = explain_attention(block, shape(2, 24, 5, 7))
    assert (cost.heads, cost.queries, cost.keys) == (3, 35, 3 * 4)
    assert (cost.head_dim, cost.value_dim) == (2, 8)
    assert cost.flops == 2 * 2 * 3 * 35 * 12 * (2 + 8)


def test_names_are_of_the_innermost_module_and_in_order():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = MultiHeadAttention(12, 3)

        def forward(self, x):
            x = attention(x[:, None], x[:, None], x[:, None])[:, 0]
            x = self.inner(x) + self.inner(x)
            return attention(x[:, None], x[:, None], x[:, None])[:, 0]

    model = nn.Sequential(Twice(), Encoder(12, 2, 17, 2))
    names = [cost.name for cost in explain_attention(model, shape(2, 5, 12))]
    layers = [f"1.layers.{i}.self_attn" for i in (0, 1)]
    assert names == ["0", "0.inner", "0.inner", "0", *layers]
    assert set(names) <= {name for name, _ in model.named_modules()}


def test_cross_attention_and_causality():
    model = Transformer(11, 13, embed_dim=8, num_heads=2, ffn_dim=7)
    source, target = (torch.zeros(3, n, dtype=torch.int64, device="meta") for n in (5, 7))
    costs = explain_attention(model, source, target)
    assert {(cost.queries, cost.keys) for cost in costs} == {(5, 5), (7, 7), (7, 5)}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(5, 7), (67, 71)], ids=str)
@pytest.mark.parametrize("make", [SelfAttention2d, SelfAttention2d.biggan])
def test_the_routes_are_those_that_a_real_pass_takes(make, size, dtype, training):
    block = make(16).to(dtype)
    x = torch.randn(1, 16, *size, dtype=dtype)
    with record_routes() as taken:
        block(x)
    costs = explain_attention(block, x, training=training)
    assert [(c.route, c.reason, c.refused) for c in costs] == [
        (route.name, route.reason, route.refused) for _, route in taken
    ]


def test_training_is_3_times_the_forward_pass_and_more_where_scores_are_computed_again():
    x = shape(1, 17, 12)
    module = MultiHeadAttention(12, 3)
    forward, training = (
        explain_attention(module, x, training=training)[0] for training in (False, True)
    )
    assert forward.route == "fused"
    assert forward.flops == 2 * 3 * 17 * 17 * (4 + 4)
    assert training.flops == 3.5 * forward.flops
    assert training.peak_bytes > forward.peak_bytes
    forward, training = (
        explain_attention(SelfAttention2d(24), shape(2, 24, 5, 7), training=training)[0]
        for training in (False, True)
    )
    assert forward.route == training.route == "direct"
    assert training.flops == 3 * forward.flops


def test_a_plan_for_a_gpu_without_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = VisionTransformer(10, image_size=(8, 12), embed_dim=32, num_heads=2, num_layers=2)
    costs = explain_attention(
        model.bfloat16(), shape(2, 3, 8, 12, dtype=torch.bfloat16), device="cuda"
    )
    assert [cost.route for cost in costs] == ["fused", "fused"]
    assert [cost.peak_bytes for cost in costs] == [None, None]


def test_a_module_without_attention_and_a_wrong_device():
    assert explain_attention(nn.Linear(3, 5), shape(2, 3)) == []
    with pytest.raises(ValueError, match="expected 'cpu' or 'cuda'"):
        explain_attention(nn.Linear(3, 5), shape(2, 3), device="mps")


def test_nothing_stays_on_the_module():
    block = SelfAttention2d(8)
    explain_attention(block, shape(1, 8, 3, 5))
    assert not block._forward_hooks
    assert not block._forward_pre_hooks

"""timm's ViTs with fused attention: their weights, without touching what they compute."""

import pytest
import timm
import torch
from oracles import assert_near
from torch import nn

from cvattn.core import MultiHeadAttention
from cvattn.maps import attention_modules, capture_attention
from cvattn.maps.grids import Layout


def timm_vit(**options) -> nn.Module:
    sizes = {"img_size": (12, 20), "patch_size": 4, "embed_dim": 18, "depth": 2, "num_heads": 3}
    torch.manual_seed(3)
    model = timm.models.VisionTransformer(**(sizes | options), num_classes=5)
    for parameter in model.parameters():  # timm starts near zero, where all weights are alike
        nn.init.normal_(parameter)
    return model.double().eval()


def unfused_weights(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """What timm's own unfused attention multiplies the values with."""
    seen = {}
    for name, block in attention_modules(model).items():
        block.fused_attn = False
        block.attn_drop.register_forward_hook(
            lambda _, args, __, name=name: seen.update({name: args[0]})
        )
    model(images)
    return seen


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qk_norm": True, "qkv_bias": False},
        {"class_token": False, "global_pool": "avg"},
        {"reg_tokens": 2},
    ],
    ids=str,
)
def test_equal_to_the_weights_of_unfused_attention(options):
    model, images = timm_vit(**options), torch.randn(2, 3, 12, 20).double()
    before = model(images)
    assert all(block.fused_attn for block in attention_modules(model).values())
    with capture_attention(model) as maps:
        assert torch.equal(model(images), before)
    with capture_attention(model, ["blocks.1.attn"], rows=[4, 1]) as chosen:
        model(images)
    wanted = unfused_weights(model, images)
    assert list(maps) == list(wanted) == ["blocks.0.attn", "blocks.1.attn"]
    for name, weights in wanted.items():
        assert weights.std() > 0.004  # not all alike
        assert_near(maps[name], weights)
        prefix = weights.shape[-1] - 15
        assert maps.layout[name] == Layout((3, 5), (3, 5), num_prefix_tokens=prefix)
    assert_near(chosen["blocks.1.attn"], wanted["blocks.1.attn"][:, :, [4, 1]])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks_that_the_caller_gives_are_seen(kind):
    block = timm.layers.Attention(18, num_heads=3, qkv_bias=True).eval()
    x, mask = torch.randn(2, 7, 18), torch.ones(7, 7, dtype=torch.bool).tril(2)
    given = mask if kind == "bool" else torch.zeros(7, 7).masked_fill(~mask, float("-inf"))
    with capture_attention(block) as maps:
        output = block(x, attn_mask=given)
    assert not maps[""][:, :, ~mask].any()
    v = block.qkv(x).unflatten(-1, (3, 3, 6))[:, :, 2].transpose(1, 2)
    assert_near(block.proj((maps[""] @ v).transpose(1, 2).flatten(2)), output)


def test_timm_and_ours_in_one_model():
    both = nn.Sequential(timm.layers.Attention(12, num_heads=2), MultiHeadAttention(12, 3))
    with capture_attention(both) as maps:
        both(torch.randn(2, 5, 12))
    assert {name: tuple(w.shape) for name, w in maps.items()} == {
        "0": (2, 2, 5, 5),
        "1": (2, 3, 5, 5),
    }

"""from_timm: the same logits and gradients as timm's ViT; what was changed by hand is named."""

import pytest
import torch
from oracles import assert_accurate, assert_near, call
from torch import nn

from cvattn.core import MultiHeadAttention
from cvattn.models import VisionTransformer
from cvattn.weights import from_timm

SMALL = {
    "img_size": (12, 20),
    "patch_size": 4,
    "in_chans": 3,
    "num_classes": 7,
    "embed_dim": 14,
    "depth": 3,
    "num_heads": 2,
    "mlp_ratio": 2.5,
}
MEAN = {"global_pool": "avg", "class_token": False, "fc_norm": False}


def timm_vit(**options):
    from timm.models.vision_transformer import VisionTransformer as Source

    model = Source(**(SMALL | options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model


TAKEN = {
    "class token": {},
    "class token without a position": {"no_embed_class": True},
    "mean": MEAN,
    "LayerScale": {"init_values": 0.1},
    "LayerScale and mean": {"init_values": 1e-5, **MEAN},
    "relu, one channel": {"act_layer": nn.ReLU, "in_chans": 1},
    "drop path": {"drop_path_rate": 0.2},
    "dropout": {"pos_drop_rate": 0.1, "attn_drop_rate": 0.1, "proj_drop_rate": 0.1},
    "one block": {"depth": 1},
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("options", TAKEN.values(), ids=TAKEN.keys())
def test_same_logits_and_gradients(options, fused):
    theirs = timm_vit(**options).double().eval()
    for block in theirs.blocks:
        block.attn.fused_attn = fused
    ours = from_timm(theirs)
    assert isinstance(ours, VisionTransformer)
    assert not ours.training
    images = torch.randn(5, options.get("in_chans", 3), 12, 20, dtype=torch.float64)
    images.requires_grad_()
    expected, actual = theirs(images), ours(images)
    assert_near(actual, expected)
    pattern = torch.linspace(-1, 2, expected.numel(), dtype=torch.float64).view_as(expected)
    (want,) = torch.autograd.grad((expected * pattern).sum(), images, retain_graph=True)
    (got,) = torch.autograd.grad((actual * pattern).sum(), images, retain_graph=True)
    assert_near(got, want, "gradient of the images")
    (expected * pattern).sum().backward()
    (actual * pattern).sum().backward()
    for index, (layer, block) in enumerate(zip(ours.encoder.layers, theirs.blocks, strict=True)):
        packed = [getattr(layer.self_attn, f"{n}_proj").weight.grad for n in "qkv"]
        assert_near(torch.cat(packed), block.attn.qkv.weight.grad, f"qkv of {index}")
        assert_near(layer.ffn.fc2.weight.grad, block.mlp.fc2.weight.grad)
        if "init_values" in options:
            assert_near(layer.branch1[0].gamma.grad, block.ls1.gamma.grad)
    rows = theirs.pos_embed.grad[0, -15:]
    assert_near(ours.positions.table.grad, rows, "positions")
    if ours.class_token is not None:
        assert_near(ours.class_token.grad, theirs.cls_token.grad[0, 0], "class token")
    assert_near(ours.head.weight.grad, theirs.head.weight.grad)


def test_float32():
    theirs = timm_vit().eval()
    images = torch.randn(5, 3, 12, 20)
    assert_accurate(from_timm(theirs)(images), call, theirs, images)


@pytest.mark.parametrize("options", [{}, {"no_embed_class": True}, MEAN])
def test_resampled_as_timm_does(options):
    theirs = timm_vit(**options).eval()
    ours = from_timm(theirs)
    ours.resample((20, 28))
    theirs.set_input_size(img_size=(20, 28))
    images = torch.randn(3, 3, 20, 28)
    assert_accurate(ours(images), call, theirs, images)


def test_all_parameters_arrive():
    """Ours has theirs less the class token's position, which is folded in."""
    theirs = timm_vit(init_values=0.1)
    count = sum(p.numel() for p in theirs.parameters()) - SMALL["embed_dim"]
    ours = from_timm(theirs)
    assert sum(p.numel() for p in ours.parameters()) == count
    memory = {p.data_ptr() for p in theirs.parameters()}
    assert not memory & {p.data_ptr() for p in ours.parameters()}
    assert all(p.requires_grad and p.is_leaf for p in ours.parameters())


def test_mode_dtype_frozen_parts_and_rates_follow():
    theirs = timm_vit(drop_path_rate=0.2, attn_drop_rate=0.1, proj_drop_rate=0.1, pos_drop_rate=0.1)
    theirs.bfloat16().train()
    theirs.patch_embed.requires_grad_(False)
    theirs.pos_embed.requires_grad_(False)
    theirs.blocks[0].attn.qkv.requires_grad_(False)
    before = torch.get_rng_state()
    ours = from_timm(theirs)
    assert torch.equal(torch.get_rng_state(), before)
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    assert ours.training
    frozen = {name for name, p in ours.named_parameters() if not p.requires_grad}
    attention = {
        f"encoder.layers.0.self_attn.{n}_proj.{k}" for n in "qkv" for k in ("weight", "bias")
    }
    assert frozen == {"stem.weight", "stem.bias", "positions.table"} | attention
    rates = {m.dropout for m in ours.modules() if isinstance(m, MultiHeadAttention)}
    assert rates | {m.p for m in ours.modules() if isinstance(m, nn.Dropout)} == {0.1}
    assert ours.encoder.layers[-1].branch2[-1].probability == pytest.approx(0.2)


def test_refused_layers():
    from timm.layers import GluMlp
    from timm.models.vision_transformer import ParallelScalingBlock

    with pytest.raises(ValueError, match="block_fn=ParallelScalingBlock"):
        from_timm(timm_vit(block_fn=ParallelScalingBlock))
    with pytest.raises(ValueError, match=r"GluMlp uses act_layer=GELU.*expected SiLU"):
        from_timm(timm_vit(mlp_layer=GluMlp, mlp_ratio=2))
    theirs = timm_vit()
    theirs.blocks[1].norm2.eps = 1e-3
    with pytest.raises(ValueError, match="eps of the norms"):
        from_timm(theirs)
    theirs = timm_vit(drop_path_rate=0.2)
    theirs.blocks[1].drop_path2.drop_prob = 0.5
    with pytest.raises(ValueError, match=r"drop_path of blocks\.1"):
        from_timm(theirs)


def test_refused_types():
    import timm

    with pytest.raises(TypeError, match="got a Linear; expected timm's VisionTransformer or Eva"):
        from_timm(nn.Linear(3, 5))
    with pytest.raises(TypeError, match="got a VisionTransformer"):
        from_timm(VisionTransformer(7))  # ours is not theirs
    with pytest.raises(TypeError, match="got a ResNet"):
        from_timm(timm.create_model("resnet18", pretrained=False))

"""from_torchvision: the same logits and gradients as torchvision's ViT, also at another size."""

import pytest
import torch
from oracles import assert_accurate, assert_near, fill
from torch import nn

from cvattn.models import VisionTransformer
from cvattn.weights import from_torchvision


def torchvision_vit(**options):
    from torchvision.models import VisionTransformer as Source

    small = {"image_size": 12, "patch_size": 4, "num_layers": 2, "num_heads": 2}
    small |= {"hidden_dim": 14, "mlp_dim": 35, "num_classes": 7}
    return fill(Source(**(small | options)))


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_same_logits_and_gradients(rate):
    theirs = torchvision_vit(dropout=rate, attention_dropout=rate).double().eval()
    ours = from_torchvision(theirs)
    assert isinstance(ours, VisionTransformer)
    assert not ours.training
    images = torch.randn(5, 3, 12, 12, dtype=torch.float64, requires_grad=True)
    expected, actual = theirs(images), ours(images)
    assert_near(actual, expected)
    pattern = torch.linspace(-1, 2, expected.numel(), dtype=torch.float64).view_as(expected)
    (want,) = torch.autograd.grad((expected * pattern).sum(), images, retain_graph=True)
    (got,) = torch.autograd.grad((actual * pattern).sum(), images, retain_graph=True)
    assert_near(got, want, "gradient of the images")
    (expected * pattern).sum().backward()
    (actual * pattern).sum().backward()
    for layer, block in zip(ours.encoder.layers, theirs.encoder.layers, strict=True):
        packed = [getattr(layer.self_attn, f"{n}_proj").weight.grad for n in "qkv"]
        assert_near(torch.cat(packed), block.self_attention.in_proj_weight.grad)
        assert_near(layer.ffn.fc2.weight.grad, block.mlp[3].weight.grad)
    rows = theirs.encoder.pos_embedding.grad[0]
    assert_near(ours.positions.table.grad, rows[1:], "positions")
    assert_near(ours.class_token.grad, theirs.class_token.grad[0, 0], "class token")


@pytest.mark.usefixtures("float64")
def test_float32_and_the_random_state():
    theirs = torchvision_vit().eval()
    before = torch.get_rng_state()
    ours = from_torchvision(theirs)
    assert torch.equal(torch.get_rng_state(), before)
    images = torch.randn(5, 3, 12, 12)
    assert_near(ours(images), theirs(images))
    memory = {p.data_ptr() for p in theirs.parameters()}
    assert not memory & {p.data_ptr() for p in ours.parameters()}


def test_mode_rates_and_frozen_parts_follow():
    theirs = torchvision_vit(dropout=0.1, attention_dropout=0.1).train()
    theirs.conv_proj.requires_grad_(False)
    theirs.encoder.pos_embedding.requires_grad_(False)
    theirs.encoder.layers[1].ln_1.eps = 1e-3
    ours = from_torchvision(theirs)
    assert ours.training
    frozen = {name for name, p in ours.named_parameters() if not p.requires_grad}
    assert frozen == {"stem.weight", "stem.bias", "positions.table"}
    assert {m.p for m in ours.modules() if isinstance(m, nn.Dropout)} == {0.1}
    assert [layer.self_attn.dropout for layer in ours.encoder.layers] == [0.1, 0.1]
    assert [layer.norm1.eps for layer in ours.encoder.layers] == [1e-6, 1e-3]


def test_resampled_to_a_grid_that_is_not_square():
    """As timm resamples such a table, prefix row and all; torchvision has a square one only."""
    from timm.layers import resample_abs_pos_embed

    theirs = torchvision_vit().eval()
    ours = from_torchvision(theirs)
    ours.resample((20, 28))
    table = resample_abs_pos_embed(theirs.encoder.pos_embedding, [5, 7], num_prefix_tokens=1)
    images = torch.randn(3, 3, 20, 28)

    def with_table(theirs, table, images):
        tokens = theirs.conv_proj(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([theirs.class_token.expand(3, -1, -1), tokens], dim=1) + table
        return theirs.heads(theirs.encoder.ln(theirs.encoder.layers(tokens))[:, 0])

    assert_accurate(ours(images), with_table, theirs, table, images)


def stem():
    from torchvision.models.vision_transformer import ConvStemConfig

    return [ConvStemConfig(5, 3, 2), ConvStemConfig(7, 3, 2)]


def changed(change):
    theirs = torchvision_vit()
    change(theirs)
    return theirs


def other_norm(theirs):
    theirs.encoder.layers[1].ln_2 = nn.RMSNorm(14)


def other_mlp(theirs):
    theirs.encoder.layers[0].mlp = nn.Sequential(nn.Linear(14, 14))


def other_activation(theirs):
    theirs.encoder.layers[1].mlp[1] = nn.SiLU()


REFUSED = {
    "conv stem": (lambda: torchvision_vit(conv_stem_configs=stem()), "conv_stem_configs"),
    "representation": (lambda: torchvision_vit(representation_size=5), "representation_size"),
    "rates": (lambda: torchvision_vit(dropout=0.1), r"dropout and attention_dropout.*\[0.0, 0.1\]"),
    "no layers": (lambda: torchvision_vit(num_layers=0), "num_layers=0"),
    "head": (lambda: changed(lambda t: t.heads.append(nn.ReLU())), "representation_size"),
    "norm": (lambda: changed(other_norm), r"norm_layer=RMSNorm in encoder.layers.encoder_layer_1"),
    "mlp": (lambda: changed(other_mlp), "Sequential in encoder.layers.encoder_layer_0"),
    "activation": (lambda: changed(other_activation), "SiLU.*expected relu or gelu"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        from_torchvision(make())


def test_refused_types():
    with pytest.raises(TypeError, match="got a VisionTransformer; expected torchvision's"):
        from_torchvision(VisionTransformer(7))  # ours is not theirs

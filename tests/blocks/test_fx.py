"""torch.fx and the feature extractors of torchvision and timm see through the block."""

import pytest
import timm
import torch
import torchvision
from oracles import assert_accurate, call
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from cvattn import SAGANClassifier, SelfAttention2d, insert_attention


def acting(model: nn.Module) -> nn.Module:
    found = [m for m in model.modules() if isinstance(m, SelfAttention2d)]
    assert found
    for block in found:
        block.gamma.data.fill_(0.7)
    return model.eval()


@pytest.mark.parametrize("form", [SelfAttention2d, SelfAttention2d.biggan])
def test_the_block_is_traced_with_its_convolutions_as_modules(form):
    model = acting(nn.Sequential(form(12)))
    traced = torch.fx.symbolic_trace(model)
    calls = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    assert calls >= {"0.query", "0.key", "0.value"} | ({"0.proj"} if model[0].proj else set())
    for size in ((3, 5), (7, 2)):  # nothing of the shape is in the graph
        x = torch.randn(2, 12, *size)
        assert_accurate(traced(x), call, model, x)
    with pytest.raises(ValueError, match=r"\(batch, 12, height, width\)"):
        traced(torch.randn(2, 11, 3, 5))


@pytest.mark.parametrize("attention", ["common", "pooled", "biggan", "convolution", "none"])
def test_the_classifier_is_traced(attention):
    model = SAGANClassifier(5, widths=(8, 16, 8), attention=attention).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            parameter.data.fill_(0.7)
    images = torch.randn(2, 3, 32, 32)
    assert_accurate(torch.fx.symbolic_trace(model)(images), call, model, images)


def outputs_of(model: nn.Module, names: list[str], images: torch.Tensor) -> list[torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: seen.__setitem__(name, output)
        )
        for name in names
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return [seen[name] for name in names]


@pytest.mark.parametrize("after", ["layer3", "layer2.1", ["layer3", "maxpool"]])
def test_torchvision_extracts_features(after):
    model = acting(insert_attention(torchvision.models.resnet18(num_classes=7), after=after))
    images, names = torch.randn(2, 3, 64, 96), ["layer3", "layer4"]
    extractor = create_feature_extractor(model, names).eval()
    for got, want in zip(extractor(images).values(), outputs_of(model, names, images), strict=True):
        assert torch.equal(got, want)


def test_timm_extracts_features():
    from timm.models._features_fx import GraphExtractNet

    model = acting(
        insert_attention(timm.create_model("resnet26", num_classes=7), after=["layer3", "layer2.1"])
    )
    images, names = torch.randn(2, 3, 64, 96), ["layer3", "layer4"]
    got = GraphExtractNet(model, names).eval()(images)
    for one, other in zip(got, outputs_of(model, names, images), strict=True):
        assert torch.equal(one, other)

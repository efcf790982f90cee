import pytest
import torch
import torch.nn.functional as F
from oracles import assert_near

from cvattn.models.whitening import PatchWhitening


def photographs(count: int = 230, channels: int = 3) -> torch.Tensor:
    """Smooth random images, whose neighbouring pixels and channels are correlated."""
    generator = torch.Generator().manual_seed(4)
    small = torch.randn(count, channels, 5, 6, generator=generator)
    large = F.interpolate(small, size=(13, 17), mode="bilinear")
    return (
        large
        + 0.5 * large.mean(1, keepdim=True)
        + 0.05 * torch.randn(large.shape, generator=generator)
    )


@pytest.mark.usefixtures("float64")
def test_patches_come_out_white():
    images = photographs()
    layer = PatchWhitening(3)
    layer.fit(images, eps=0.0)
    out = layer(images).detach().movedim(1, -1).reshape(-1, 24).double()
    half = out[:, :12]
    assert_near(half.T @ half / len(half), torch.eye(12))
    assert torch.equal(out[:, 12:], -half)


def test_weak_components_are_not_blown_up():
    images = photographs(channels=1).expand(-1, 3, -1, -1)  # three equal channels
    layer = PatchWhitening(3)
    layer.fit(images)
    assert torch.isfinite(layer.weight).all()
    assert layer.weight.abs().max() < 1 / 5e-4**0.5 + 1
    out = layer(images)
    assert [bool(channel.any()) for channel in out.unbind(1)] == ([True] * 4 + [False] * 8) * 2


def test_signs_are_the_same_on_every_machine():
    layer = PatchWhitening(3)
    layer.fit(photographs())
    filters = layer.weight[:12].flatten(1)
    largest = filters.gather(1, filters.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()


def test_the_strongest_component_comes_first_and_only_the_bias_is_trained():
    layer = PatchWhitening(2)
    layer.fit(photographs(channels=2))
    norms = layer.weight.flatten(1).norm(dim=1)
    assert layer.weight.shape == (16, 2, 2, 2)
    assert (norms[:8].diff() >= 0).all()  # 1 / standard deviation grows
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["bias"]
    assert torch.equal(layer.bias.detach(), torch.zeros(16))

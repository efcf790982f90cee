"""A device that has no float64, as Apple's: what runs there runs without, and is as exact.

No such device is here. The meta device stands for it, with torch's refusal put in front of it.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cvattn.blocks import SelfAttention2d
from cvattn.core import devices
from cvattn.core.positions import SinusoidalPositions, sincos_2d, sinusoidal_1d
from cvattn.core.relative_bias import RelativeGridBias
from cvattn.maps import (
    attention_distance,
    attention_entropy,
    attention_rollout,
    capture_attention,
)
from cvattn.models import SAGAN, SAGANClassifier, Transformer, UNet, VisionTransformer
from cvattn.testing import check_attention, slow_attention


class NoFloat64(TorchDispatchMode):
    """The meta device refuses float64, with the kind of error that torch gives on MPS."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor) and leaf.is_meta and leaf.dtype == torch.float64:
                raise TypeError(f"{func}: this device does not support float64")
        return output


@pytest.fixture
def poor_device():
    devices._widest.cache_clear()
    with NoFloat64():
        yield torch.device("meta")
    devices._widest.cache_clear()


def test_the_stand_in_refuses(poor_device):
    with pytest.raises(TypeError, match="does not support float64"):
        torch.zeros(3, dtype=torch.float64, device=poor_device)
    assert devices.widest_float(poor_device) is torch.float32
    assert devices.widest_float(torch.device("cpu")) is torch.float64


def test_positions(poor_device):
    assert sinusoidal_1d(7, 5, device=poor_device).dtype == torch.float32
    assert sincos_2d(3, 5, 8, device=poor_device).is_meta
    x = torch.empty(2, 9, 6, device=poor_device)
    module = SinusoidalPositions(6, max_length=4).to(poor_device)
    for start in (0, 50):  # from the table, and beyond it
        assert module(x, start=start).shape == x.shape
    grid = RelativeGridBias(2, (3, 5)).to(poor_device)
    grid.resample((4, 6))
    assert grid((4, 6)).is_meta


def test_measures(poor_device):
    weights = torch.empty(2, 3, 15, 15, device=poor_device)
    assert attention_entropy(weights).shape == (3,)
    assert attention_distance(weights.unflatten(-1, (3, 5))).shape == (3,)
    assert attention_rollout({"a": weights, "b": weights}).shape == (2, 15, 15)


SIZES = {"embed_dim": 8, "num_heads": 2, "ffn_dim": 9}
NETWORKS = {
    "sagan": (lambda: SAGANClassifier(3, widths=(8, 8, 8)), (2, 3, 32, 32)),
    "vit": (
        lambda: VisionTransformer(
            3, image_size=(6, 10), patch_size=2, num_layers=1, positions="sincos", **SIZES
        ),
        (2, 3, 6, 10),
    ),
}


@pytest.mark.parametrize(("build", "shape"), NETWORKS.values(), ids=NETWORKS.keys())
def test_networks_and_what_is_captured_of_them(build, shape, poor_device):
    model, images = build().to(poor_device), torch.empty(shape, device=poor_device)
    with capture_attention(model) as maps:
        model(images).sum().backward()
    for name in maps:
        assert attention_entropy(maps[name]).dtype == torch.float32
        assert maps.on_grid(name).is_meta
    model.eval()(images)


def test_a_transformer(poor_device):
    model = Transformer(13, 11, **SIZES).to(poor_device)
    source = torch.zeros(1, 520, dtype=torch.long, device=poor_device)
    assert model(source, source).shape == (1, 520, 11)  # longer than the table


def test_a_unet_under_times_and_labels(poor_device):
    model = UNet(2, width=4, classes=3).to(poor_device)
    images, times = (
        torch.empty(2, 2, 32, 32, device=poor_device),
        torch.empty(2, device=poor_device),
    )
    labels = torch.zeros(2, dtype=torch.long, device=poor_device)
    assert model(images, times, labels).shape == images.shape


def test_a_gan_that_is_told_how_images_are_normalised(poor_device):
    model = SAGAN(2, image_size=16, noise_dim=7, width=4, classes=3).to(poor_device)
    model.set_normalisation((0.4, 0.5), 0.2)
    labels = torch.zeros(2, dtype=torch.long, device=poor_device)
    images = model(torch.empty(2, 7, device=poor_device), labels)
    assert model.score(images, labels).shape == (2,)


def test_the_numbers_in_float32_are_near_those_in_float64(monkeypatch):
    """On such a device entropy and distance come in float32."""
    weights = torch.randn(2, 3, 15, 15).softmax(-1)
    pictures = weights.unflatten(-1, (3, 5))
    want = [attention_entropy(weights), attention_distance(pictures)]
    monkeypatch.setattr(devices, "_widest", lambda device_type: torch.float32)
    got = [attention_entropy(weights), attention_distance(pictures)]
    for ours, exact in zip(got, want, strict=True):
        assert ours.dtype == torch.float32
        assert exact.dtype == torch.float64
        bound = 16 * torch.finfo(torch.float32).eps * exact.abs().max()
        assert (ours - exact).abs().max() < bound


def test_the_checks_of_a_module_go_to_the_cpu(poor_device):
    """check_attention and the oracle need the digits: they say float64 and mean it."""
    query = torch.randn(1, 2, 3, 4)
    want, _ = slow_attention(query, query, query)
    assert want.dtype == torch.float64
    report = check_attention(SelfAttention2d(8), torch.empty(1, 8, 3, 5, device=poor_device))
    assert report


def test_the_default_device_is_where_tables_go():
    with torch.device("meta"):
        assert sinusoidal_1d(7, 5).is_meta
        assert sincos_2d(3, 5, 8).is_meta
    assert not sinusoidal_1d(7, 5).is_meta

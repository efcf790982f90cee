"""Heat over images: what was planted lights up where it was planted, whatever the shape."""

import numpy as np
import pytest
import torch
from oracles import assert_near
from torch import nn

from cvattn.blocks import SelfAttention2d
from cvattn.maps import attention_heat, capture_attention, heat_on_image, overlay
from cvattn.models import VisionTransformer


class Downsampled(nn.Module):
    """Four-fold smaller maps with one attention block, which looks at what is bright."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(4)
        self.block = SelfAttention2d(3, qk_channels=1, **options)
        with torch.no_grad():
            self.block.query.weight.zero_()
            self.block.query.bias.fill_(1.0)  # every query asks the same
            self.block.key.weight.fill_(4.0)
            self.block.gamma.fill_(0.7)

    def forward(self, images):
        return self.block(self.pool(images))


@pytest.mark.parametrize("kv_pool", [1, 2])
@pytest.mark.parametrize("place", [(5, 2), (0, 10), (6, 0), (3, 7)])
def test_a_planted_patch_lights_up_where_it_is(kv_pool, place):
    """28 x 44 pixels, a map of 7 x 11: nothing is square, and pools at the edges are cut."""
    y, x = place
    images = torch.rand(2, 3, 28, 44) * 0.05
    images[1, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] = 2.0
    (heat,) = attention_heat(Downsampled(kv_pool=kv_pool), images, at=(27, 43)).values()
    assert heat.shape == (2, 1, 28, 44)
    peak = heat[1, 0]
    inside = torch.zeros(28, 44, dtype=torch.bool)
    side = 4 * kv_pool
    top, left = 4 * y // side * side, 4 * x // side * side
    inside[top : top + side, left : left + side] = True
    # Interpolation carries heat outside, by half a cell and less and less.
    assert inside[peak == peak.max()].all()
    assert peak[inside].mean() > 4 * peak[~inside].mean()
    assert heat[0].max() < 0.5 * peak.max()


@pytest.mark.usefixtures("float64")
def test_the_point_that_looks_is_the_one_that_was_named():
    model = Downsampled().eval()
    with torch.no_grad():
        model.block.query.weight.normal_()
    images = torch.randn(2, 3, 28, 44)
    with capture_attention(model) as maps:
        model(images)
    (heat,) = attention_heat(model, images, at=(13.5, 30)).values()
    row = (13 // 4) * 11 + 30 // 4
    want = heat_on_image(maps["block"][:, :, row].unflatten(-1, (7, 11)), (28, 44))
    assert_near(heat, want)
    across, along = heat[:, :, 2::4, 2::4] + heat[:, :, 1::4, 1::4], 2 * want[:, :, 1::4, 2::4]
    assert (across - along).abs().max() <= 0.2 * along.max()  # smooth: about the same, not equal


@pytest.mark.usefixtures("float64")
def test_class_token_and_points_of_a_vision_transformer():
    model = VisionTransformer(
        5,
        image_size=(6, 10),
        patch_size=2,
        embed_dim=12,
        num_heads=3,
        ffn_dim=20,
        num_layers=2,
        pool="cls",
    ).eval()
    images = torch.randn(2, 3, 6, 10)
    with capture_attention(model) as maps:
        model(images)
    first, last = attention_heat(model, images), attention_heat(model, images, at=(5, 4))
    assert list(first) == list(last) == list(maps)
    for name in maps:
        assert_near(
            first[name], heat_on_image(maps[name][:, :, 0, 1:].unflatten(-1, (3, 5)), (6, 10))
        )
        row = 1 + 2 * 5 + 2
        assert_near(
            last[name],
            heat_on_image(maps[name][:, :, row, 1:].unflatten(-1, (3, 5)), (6, 10)),
        )
    (one,) = attention_heat(model, images, layers=["encoder.layers.1.self_attn"]).values()
    assert torch.equal(one, first["encoder.layers.1.self_attn"])


def test_heat_errors():
    model, images = Downsampled(), torch.randn(1, 3, 28, 44)
    with pytest.raises(ValueError, match=r"at=\(28, 3\) is not inside images of 28 x 44 \(y, x\)"):
        attention_heat(model, images, at=(28, 3))
    with pytest.raises(ValueError, match=r"Downsampled has no class token.* at=\(y, x\)"):
        attention_heat(model, images)
    with pytest.raises(ValueError, match="showed no attention"):
        attention_heat(nn.Conv2d(3, 3, 1), images, at=(1, 1))


def test_overlay_shows_both():
    picture = np.zeros((5, 9, 3), np.uint8)
    picture[:, 4:] = 200
    heat = torch.zeros(5, 9)
    heat[3, 7] = 0.02
    over = overlay(picture, heat, strength=0.5)
    assert over.shape == (5, 9, 3)
    assert over.dtype == np.uint8
    brightness = over.astype(int).sum(-1)
    assert brightness.argmax() == 3 * 9 + 7  # the most, though it is 0.02
    assert brightness[0, 8] > brightness[0, 0]  # the picture is still there
    assert (overlay(picture, heat, strength=0.0) == picture).all()
    assert (overlay(picture[..., 0], heat) == overlay(picture, heat)).all()
    with pytest.raises(ValueError, match=r"heat of \(4, 9\) does not lie .* \(5, 9\)"):
        overlay(picture, heat[:4])
    with pytest.raises(ValueError, match=r"strength=1\.5"):
        overlay(picture, heat, strength=1.5)

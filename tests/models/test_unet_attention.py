"""UNet's attention and its controls: where they stand, what they reach, what they cost."""

import pytest
import torch
from oracles import fill
from torch import nn
from unets import KINDS, SMALL, filled, given

from cvattn import capture_attention
from cvattn.blocks.group_norm import MapGroupNorm
from cvattn.cost import count_macs, count_parameters, predict_peak
from cvattn.models import UNet


@pytest.mark.parametrize(
    ("blocks", "at", "places"),
    [
        (1, (1, 2), {"down1": 1, "down2": 2, "middle": 2, "up2": 2, "up1": 1}),
        (1, (0,), {"down0": 0, "up0": 0}),
        (2, [1], {"down1": 1, "down1_2": 1, "up1": 1, "up1_2": 1}),
        (2, (2,), {"down2": 2, "down2_2": 2, "middle": 2, "up2": 2, "up2_2": 2}),
    ],
)
def test_attention_stands_where_it_was_asked_for_and_is_captured_by_name(blocks, at, places):
    net = filled(2, blocks=blocks, attention_at=at)
    with capture_attention(net) as maps:
        net(*given(net))
    assert set(maps) == {f"{place}.attention" for place in places}
    for place, level in places.items():
        height, width = 8 >> level, 12 >> level
        grid = maps.on_grid(f"{place}.attention")
        assert grid.shape[0] == 3
        assert grid.shape[2:] == (height * width, height, width)


@pytest.mark.parametrize("attention", ["unet", "common", "convolution", "window", "frozen"])
@pytest.mark.parametrize("level", [0, 1])
def test_a_far_pixel_is_seen_through_attention_and_not_without(attention, level):
    """Without group norms, which mix all positions."""

    def moved(attention: str) -> bool:
        options = {"image_size": (48, 40), "multipliers": (1, 1), "attention_at": (level,)}
        net = filled(1, 1, timed=False, attention=attention, **options)
        for name, module in list(net.named_modules()):
            if isinstance(module, MapGroupNorm):
                net.get_submodule(name.rpartition(".")[0]).norm = None
            elif isinstance(module, nn.GroupNorm):
                net.set_submodule(name, nn.Identity())
        with torch.no_grad():
            for parameter in net.parameters():  # scores that leave the softmax some choice
                parameter *= 0.5
        images = torch.randn(1, 1, 48, 40, dtype=torch.float64)
        other = images.clone()
        other[..., 0, 0] += 3.0
        net.double()
        return not torch.equal(net(images)[..., -1, -1], net(other)[..., -1, -1])

    assert not moved("none")
    # Windows are local, and three convolutions of half a map reach over all of it.
    assert moved(attention) == (attention in ("unet", "common", "convolution"))


@pytest.mark.parametrize(
    ("size", "shifts"),
    [
        ((28, 16), {1: (4, 0), 2: (0, 0)}),
        ((40, 72), {1: (4, 4), 2: (4, 4)}),
        ((40, 32), {1: (4, 4), 2: (4, 0)}),
    ],
)
def test_every_second_window_of_a_level_is_shifted_where_the_map_is_larger(size, shifts):
    net = UNet(2, **(SMALL | {"image_size": size}), attention="window", blocks=2)
    order = {1: ["down1", "down1_2", "up1", "up1_2"]}
    order[2] = ["down2", "down2_2", "middle", "up2", "up2_2"]
    for level, names in order.items():
        for number, name in enumerate(names):
            block = net.get_submodule(name).attention
            assert block.window == (8, 8)
            assert block.shift == ((0, 0) if number % 2 == 0 else shifts[level]), name


@pytest.mark.parametrize("attention", KINDS[:2] + KINDS[4:])
def test_without_attention_it_is_the_same_network(attention):
    net, without = UNet(2, **SMALL, attention=attention), UNet(2, **SMALL, attention="none")
    own = {key: value for key, value in net.state_dict().items() if ".attention." not in key}
    assert list(own) == list(without.state_dict())
    assert len(own) < len(net.state_dict())
    fill(without)
    net.load_state_dict(without.state_dict(), strict=False)
    batch = given(net)
    assert torch.equal(net(*batch), without(*batch))  # as it begins


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD])
def test_frozen_attention_stays_the_identity_in_training(make):
    net = filled(2, attention="frozen")
    optimizer = make(net.parameters(), lr=0.05, weight_decay=0.3)
    before = net.down1.attention.query.weight.clone()
    for _ in range(3):
        optimizer.zero_grad()
        images, times, _ = given(net)
        (net(images, times) - images).square().mean().backward()
        assert net.down1.attention.query.weight.grad.count_nonzero() == 0
        optimizer.step()
    assert not torch.equal(net.down1.attention.query.weight, before)  # decayed, and nothing else
    assert all(m.is_identity() for name, m in net.named_modules() if name.endswith(".attention"))
    without = UNet(2, **SMALL, attention="none")
    keys = set(without.state_dict())
    without.load_state_dict({k: v for k, v in net.state_dict().items() if k in keys})
    batch = given(net)
    assert torch.equal(net(*batch), without(*batch))


@pytest.mark.parametrize(("size", "channels"), [((28, 28), 1), ((32, 32), 3), ((40, 56), 1)])
def test_controls_cost_what_attention_costs(size, channels):
    inputs = torch.zeros(1, channels, *size), torch.zeros(1)
    macs = {
        kind: count_macs(UNet(channels, image_size=size, attention=kind), *inputs)
        for kind in ("unet", "frozen", "convolution", "none")
    }
    assert macs["frozen"] == macs["unet"] > 1.1 * macs["none"]
    added = macs["unet"] - macs["none"]
    assert macs["convolution"] - macs["none"] == pytest.approx(added, rel=0.05)


def test_the_default_costs_0_14_gmac_for_a_digit_of_28_pixels():
    net = UNet(1, image_size=(28, 28))
    macs = count_macs(net, torch.zeros(1, 1, 28, 28), torch.zeros(1))
    assert macs == pytest.approx(0.136e9, rel=0.01)
    assert count_parameters(net) == pytest.approx(0.825e6, rel=0.01)


@pytest.mark.slow
def test_memory_is_predicted_for_all_inputs():
    net = UNet(1, classes=5, **SMALL)
    few, many = (predict_peak(net, *given(net, n, (64, 96)), training=True) for n in (8, 32))
    assert many > few + 24 * 64 * 96 * 6 * 4

"""keep_early_size: maps four times as large each way, in networks of many families."""

import pytest
import torch
from torch import nn

from cvattn.models.small_images import keep_early_size


def timm_network(name):
    import timm

    return timm.create_model(name, num_classes=7, in_chans=1).eval()


@pytest.mark.parametrize(
    "name",
    [
        "test_resnet",
        "test_efficientnet",
        "tf_mobilenetv3_small_075",  # pads by the size that comes in
        pytest.param("regnetx_002", marks=pytest.mark.slow),
        pytest.param("resnet18", marks=pytest.mark.slow),
        pytest.param("resnet10t", marks=pytest.mark.slow),
        pytest.param("resnetblur50", marks=pytest.mark.slow),
        pytest.param("efficientnet_b0", marks=pytest.mark.slow),
        pytest.param("densenet121", marks=pytest.mark.slow),
        pytest.param("vgg11_bn", marks=pytest.mark.slow),
    ],
)
def test_maps_are_four_times_as_large_and_weights_still_load(name):
    before, after = timm_network(name), timm_network(name)
    keep_early_size(after, 1)
    after.load_state_dict(before.state_dict())
    assert not after.training
    images = torch.randn(2, 1, 64, 96)
    with torch.no_grad():
        small, large = before.forward_features(images), after.forward_features(images)
        assert small.shape[2:] == (2, 3)
        assert large.shape[2:] == (8, 12)
        assert after(torch.randn(2, 1, 32, 32)).shape == (2, 7)


def test_a_resnet_is_the_one_that_people_make_by_hand():
    ours, by_hand = timm_network("test_resnet"), timm_network("test_resnet")
    keep_early_size(ours, 1)
    by_hand.conv1[0].stride = (1, 1)
    by_hand.maxpool = nn.Identity()
    by_hand.load_state_dict(ours.state_dict())
    images = torch.randn(3, 1, 32, 40)
    assert torch.equal(ours(images), by_hand(images))


def test_training_mode_and_statistics_stay():
    network = timm_network("test_resnet").train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    keep_early_size(network, 1)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test_convnext", r"stem\.0, Conv2d\(1.*does not keep the size of the map at stride 1"),
        ("inception_v3", r"does not take one of \(64, 96\) \("),
    ],
)
def test_refused(name, message):
    with pytest.raises(ValueError, match=message):
        keep_early_size(timm_network(name), 1)

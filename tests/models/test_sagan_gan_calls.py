"""SAGAN in other precisions, compiled, copied, by several passes at once, and what it refuses."""

import copy
import re

import pytest
import torch
from oracles import assert_accurate
from sagan_gans import SMALL, ByHand, filled, given

from cvattn.models import SAGAN, SAGANDiscriminator, SAGANGenerator


@pytest.mark.parametrize("training", [True, False])
def test_half_precision_loses_what_the_formula_loses(training):
    def images(net, noise, labels):
        with torch.autocast("cpu", torch.bfloat16):
            return net(noise, labels=labels)

    def scores(net, images, labels):
        with torch.autocast("cpu", torch.bfloat16):
            return net.score(images, labels)

    net = filled(2, classes=5).train(training)
    by_hand = ByHand(net).train(training)
    noise, real, labels = given(net)
    assert_accurate(images(net, noise, labels), images, by_hand, noise, labels)
    assert_accurate(scores(net, real, labels), scores, by_hand, real, labels)


def test_norms_know_their_weights_in_half_precision():
    """The directions are of float32, and come to those of the largest singular value."""
    net = filled(2, classes=5)
    noise, _, labels = given(net)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        for _ in range(60):
            net.score(net(noise, labels), labels)
    net.eval()
    for name in ("generator.block1.conv1", "discriminator.label", "generator.block2.norm1.gain"):
        layer = net.get_submodule(name)
        assert layer.parametrizations.weight[0]._u.dtype == torch.float32
        found = torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item()
        assert found == pytest.approx(1.0, abs=0.01), name


def test_a_step_of_either_network_passes_through_both():
    """Scores of real and made images in one backward pass, twice, as a task does it."""
    net = filled(2, classes=5)
    noise, images, labels = given(net)
    with torch.no_grad():
        made = net(noise, labels)
    loss = net.score(made, labels).relu().mean() - net.score(images, labels).mean()
    loss.backward()
    trained = [each for each in net.discriminator.parameters() if each.requires_grad]
    assert all(each.grad is not None for each in trained)
    assert all(each.grad is None for each in net.generator.parameters())
    (-net.score(net(noise, labels), labels).mean()).backward()
    assert all(each.grad.isfinite().all() for each in net.generator.parameters())
    assert any(each.grad.abs().max() > 0 for each in net.generator.parameters())


def test_copies_go_their_own_way():
    net = filled(2, classes=5)
    other = copy.deepcopy(net)
    noise, images, labels = given(net)
    state = copy.deepcopy(net.state_dict())
    other.score(other(noise, labels), labels).sum().backward()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.sub_(parameter.grad)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    other.load_state_dict(state)
    net.eval()
    other.eval()
    assert torch.equal(other(noise, labels), net(noise, labels))
    assert torch.equal(other.score(images, labels), net.score(images, labels))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attention", "backend"), [("biggan", "inductor"), ("convolution", "aot_eager")]
)
def test_it_compiles_and_its_norms_go_on(attention, backend):
    net = filled(2, classes=5, attention=attention)
    noise, images, labels = given(net)
    ours = copy.deepcopy(net)
    ours.generator.compile(fullgraph=True, backend=backend)
    ours.discriminator.compile(fullgraph=True, backend=backend)
    for _ in range(2):
        want, found = net(noise, labels), ours(noise, labels)
        torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-3)
        scores = net.score(images, labels), ours.score(images, labels)
        torch.testing.assert_close(*scores, rtol=1e-3, atol=1e-3)
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(value, net.state_dict()[key], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 30}, "image_size=(30, 30): a map of 4 to 7 pixels"),
        ({"image_size": 30}, "squares near it have a side of 24, 28, 32"),
        ({"image_size": (32, 36)}, "image_size=(32, 36)"),
        ({"image_size": 8}, "image_size=(8, 8)"),
        ({"image_size": 256}, "image_size=(256, 256)"),
        ({"image_size": (32, 32, 3)}, "expected one side, or (height, width)"),
        ({"attention_at": 32}, "attention_at=32: for images of (32, 32)"),
        ({"attention_at": 32}, "maps with a side of 16 or 8"),
        ({"attention_at": 28, "image_size": 28}, "with a side of 14"),
        ({"discriminator_attention_after": [0]}, "blocks are [1, 2, 3, 4]"),
        ({"discriminator_attention_after": [2, 2]}, "attention_after=[2, 2]"),
        ({"attention": "window"}, "attention='window'; expected one of ('biggan', "),
        ({"init": "normal"}, "init='normal'; expected one of ('orthogonal', 'xavier')"),
        ({"upsampling": "cubic"}, "upsampling='cubic'; expected one of"),
        ({"classes": -1}, "classes=-1 must be 0 (no labels) or more"),
        ({"width": 0}, "width=0 must be at least 1"),
        ({"discriminator_width": 0}, "width=0 must be at least 1"),
        ({"noise_dim": 0}, "noise_dim=0 must be at least 1"),
        ({"in_channels": 0}, "in_channels=0 must be at least 1"),
    ],
)
def test_what_cannot_be_built_is_named(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SAGAN(**options)


@pytest.mark.parametrize(
    ("noise", "labels", "error", "message"),
    [
        ((2, 6), (2,), ValueError, r"noise \(batch, 7\), got shape \(2, 6\)"),
        ((7,), (2,), ValueError, r"noise \(batch, 7\), got shape \(7,\)"),
        ((2, 7), None, ValueError, r"labels: the network was built with classes > 0"),
        ((2, 7), (3,), ValueError, r"labels are \(3,\); expected one for each of the 2"),
        ((2, 7), (2, 5), ValueError, r"labels are \(2, 5\)"),
    ],
)
def test_noise_and_labels_that_do_not_fit(noise, labels, error, message):
    net = SAGAN(classes=5, **SMALL)
    given = None if labels is None else torch.zeros(labels, dtype=torch.int64)
    with pytest.raises(error, match=message):
        net(torch.randn(noise), given)


def test_other_types_images_and_labels_are_refused():
    net = SAGAN(2, classes=5, **SMALL)
    noise, images, labels = given(net)
    with pytest.raises(TypeError, match=r"noise is torch.int64; expected floating point"):
        net(torch.ones(3, 7, dtype=torch.int64), labels)
    with pytest.raises(TypeError, match=r"labels are torch.float32; expected torch.int64"):
        net.score(images, labels.float())
    with pytest.raises(ValueError, match="labels: the network was built with classes > 0"):
        net.score(images)
    with pytest.raises(ValueError, match="built for 2 channels, the images have 3"):
        net.discriminator(torch.randn(3, 3, 16, 20), labels)
    with pytest.raises(ValueError, match=r"images of \(16, 20\) .* these are \(20, 16\)"):
        net.score(images.transpose(2, 3), labels)
    for outside in (5, -1):
        with pytest.raises(IndexError):
            net(noise, torch.tensor([0, 1, outside]))
        with pytest.raises(IndexError):
            net.score(images, torch.tensor([0, 1, outside]))
    alone = SAGANDiscriminator(2, image_size=16, width=4)
    with pytest.raises(ValueError, match="labels: the network takes none"):
        alone(torch.randn(3, 2, 16, 16), labels)
    with pytest.raises(ValueError, match="labels: the network takes none"):
        SAGANGenerator(image_size=16, width=4, noise_dim=7)(noise, labels)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5, 0.4), 0.5, "mean has 2 values; expected one, or one for each of the 3 channels"),
        (0.5, (0.1, 0.2, 0.0), "std=[0.1, 0.2, 0.0]; expected numbers above 0"),
        (float("nan"), 0.5, "mean=[nan]; expected finite numbers"),
    ],
)
def test_constants_that_normalise_nothing(mean, std, message):
    net = SAGAN(**SMALL)
    with pytest.raises(ValueError, match=re.escape(message)):
        net.set_normalisation(mean, std)
    assert torch.equal(net.mean, torch.full((3, 1, 1), 0.5))
    assert torch.equal(net.std, net.mean)

"""SAGAN: the formulas of both networks, sizes, spectral norms, controls."""

import copy
import inspect
import math
from pathlib import Path

import pytest
import torch
import yaml
from oracles import assert_accurate, assert_near
from sagan_gans import SMALL, ByHand, Scoring, filled, given
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cvattn import capture_attention
from cvattn.cost import count_macs
from cvattn.models import SAGAN, SAGANDiscriminator, SAGANGenerator
from cvattn.models.sagan_gan_layers import attention_block


def outcome(module: nn.Module, x: Tensor, labels: Tensor | None, *, part: str) -> tuple:
    """What it gives, and the gradients of the input and of the parameters of one network."""
    x = x.detach().clone().requires_grad_()
    found = module(x, labels=labels)
    weights = torch.arange(1.0, found.numel() + 1, dtype=found.dtype).cos().view_as(found)
    # The formula and what scores have the network one or two levels down.
    named = {name[name.index(part) :]: p for name, p in module.named_parameters() if part in name}
    total = (found * weights).sum()
    slopes = torch.autograd.grad(total, [x, *named.values()], materialize_grads=True)
    return found.detach(), slopes[0], dict(zip(named, slopes[1:], strict=True))


@pytest.mark.sweep(2)
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"classes": 5},
        {"spectral_norm_generator": False},
        {
            "classes": 3,
            "upsampling": "bilinear",
            "rectified_shortcuts": True,
            "spectral_norm_discriminator": False,
        },
    ],
)
def test_outputs_and_gradients_are_those_of_the_formula(training, options):
    net = filled(2, **options).train(training)
    forms = {key: options[key] for key in ("upsampling", "rectified_shortcuts") if key in options}
    by_hand = ByHand(net, **forms).train(training)
    noise, images, labels = given(net)
    ours = outcome(net, noise, labels, part="generator.")
    assert_accurate(ours, outcome, by_hand, noise, labels, part="generator.")
    ours = outcome(Scoring(net), images, labels, part="discriminator.")
    judged = Scoring(by_hand)
    assert_accurate(ours, outcome, judged, images, labels, part="discriminator.")


@pytest.mark.usefixtures("float64")
def test_a_gradient_penalty_has_the_gradients_of_the_formula():
    net = filled(2, classes=5)
    penalty, by_hand = Scoring(net, penalty=True), Scoring(ByHand(net), penalty=True)
    _, images, labels = given(net)
    ours = outcome(penalty, images, labels, part="discriminator.")
    assert ours[2]["discriminator.attention1.gamma"].abs() > 1e-6
    assert_accurate(ours, outcome, by_hand, images, labels, part="discriminator.")


@pytest.mark.parametrize("size", [16, 28, 32, (24, 40), 64, 128])
@pytest.mark.parametrize("classes", [0, 3])
def test_shapes_of_all_sizes(size, classes):
    net = SAGAN(2, image_size=size, classes=classes, noise_dim=5, width=4).eval()
    noise, _, labels = given(net, 2)
    images = net(noise, labels)
    high, wide = net.image_size
    assert images.shape == (2, 2, high, wide)
    assert images.abs().max() <= 1
    assert net.score(images, labels).shape == (2,)
    # Half of the images' side, in both.
    with capture_attention(net) as maps:
        net.score(net(noise, labels), labels)
    assert {name.partition(".")[0] for name in maps} == {"generator", "discriminator"}
    pixels = high * wide // 4
    keys = math.ceil(high / 4) * math.ceil(wide / 4)
    assert {tuple(each.shape) for each in maps.values()} == {(2, 1, pixels, keys)}


def test_maps_above_32_pixels_are_narrower():
    net = SAGAN(image_size=128, width=8, noise_dim=5)
    widths = [net.generator.get_submodule(f"block{n}").conv2.out_channels for n in range(1, 6)]
    assert widths == [8, 8, 8, 4, 2]
    widths = [net.discriminator.get_submodule(f"block{n}").conv2.out_channels for n in range(1, 7)]
    assert widths == [2, 4, 4, 4, 4, 4]


def test_as_many_parameters_as_studiogan():
    """Which prints 4.386 M and 1.076 M for SAGAN on CIFAR-10 (of 32x32, 10 classes)."""
    with torch.device("meta"):
        net = SAGAN(classes=10, spectral_norm_generator=False, spectral_norm_discriminator=False)
    block = 2 * (9 * 256 + 1) * 256 + (256 + 1) * 256 + 4 * 10 * 256
    attention = 2 * 256 * 32 + 2 * 256 * 128 + 1
    generator = (128 + 1) * 4096 + 3 * block + attention + 2 * 256 + (9 * 256) * 3 + 3
    assert sum(each.numel() for each in net.generator.parameters()) == generator == 4_386_308
    assert sum(each.numel() for each in net.discriminator.parameters()) == 1_075_586


@pytest.mark.usefixtures("float64")
def test_an_image_is_its_noise_and_label_alone_once_trained():
    net = filled(2, classes=5).eval()
    noise, images, labels = given(net, 5)
    assert_near(net(noise[3:4], labels[3:4]), net(noise, labels)[3:4])
    assert_near(net.score(images[1:2], labels[1:2]), net.score(images, labels)[1:2])
    changed = (labels + 1) % 5
    assert ((net(noise, changed) - net(noise, labels)).abs().amax((1, 2, 3)) > 1e-3).all()
    assert ((net.score(images, changed) - net.score(images, labels)).abs() > 1e-3).all()


@pytest.mark.usefixtures("float64")
def test_normalised_images_are_what_it_makes_and_judges():
    net = filled(3, classes=5).eval()
    noise, _, labels = given(net)
    plain = net.generator(noise, labels)
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.3, 0.9)
    net.set_normalisation(mean, std)
    made = net(noise, labels)
    for channel in range(3):
        pixels = made[:, channel] * std[channel] + mean[channel]
        assert_near(2 * pixels - 1, plain[:, channel])
    assert_near(net.score(made, labels), net.discriminator(plain, labels))
    net.set_normalisation([0.5], 0.5)
    assert_near(net(noise, labels), plain)


def weighted(net: nn.Module) -> dict[str, nn.Module]:
    kinds = (nn.Conv2d, nn.Linear, nn.Embedding)
    return {name: each for name, each in net.named_modules() if isinstance(each, kinds)}


def test_the_largest_singular_value_comes_to_1():
    net = filled(2, classes=5)
    noise, images, labels = given(net)
    with torch.no_grad():
        for _ in range(60):
            net(noise, labels)
            net.score(images, labels)
    net.eval()
    for name, layer in weighted(net).items():
        found = torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item()
        assert found == pytest.approx(1.0, abs=0.01), name
    before = copy.deepcopy(net.state_dict())
    net.score(net(noise, labels), labels)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_which_layers_have_a_spectral_norm():
    def plain(**options):
        net = SAGAN(classes=5, **SMALL, **options)
        return {n for n, e in weighted(net).items() if not parametrize.is_parametrized(e, "weight")}

    embeddings = {
        f"generator.block{number}.norm{norm}.{part}"
        for number in (1, 2)
        for norm in (1, 2)
        for part in ("gain", "bias")
    }
    for attention in ("biggan", "common", "frozen", "convolution"):
        assert plain(attention=attention) == set()
    assert plain(spectral_norm_labels=False) == embeddings
    names = set(weighted(SAGAN(classes=5, **SMALL)))
    for side in ("generator", "discriminator"):
        assert plain(**{f"spectral_norm_{side}": False}) == {n for n in names if side in n}


def test_first_values():
    net = SAGAN(2, classes=5, **SMALL, spectral_norm_generator=False)
    for name, layer in weighted(net).items():
        matrix = layer.weight.detach().flatten(1)
        matrix = matrix if len(matrix) <= matrix.shape[1] else matrix.T
        assert torch.allclose(matrix @ matrix.T, torch.eye(len(matrix)), atol=1e-5), name
        assert getattr(layer, "bias", None) is None or not layer.bias.any()
    assert net.generator.attention1.is_identity()
    linear = SAGANGenerator(image_size=16, noise_dim=300, width=9, init="xavier").linear
    drawn = linear.parametrizations.weight.original
    assert drawn.abs().max() <= (6 / (300 + 9 * 16)) ** 0.5 < 1.01 * drawn.abs().max()


def test_a_frozen_block_does_nothing():
    frozen = filled(2, classes=5, attention="frozen")
    none = filled(2, classes=5, attention="none")
    left = none.load_state_dict(frozen.state_dict(), strict=False)
    assert left.missing_keys == []
    assert all("attention1" in key for key in left.unexpected_keys)
    assert len(left.unexpected_keys) > 0
    noise, images, labels = given(frozen)
    assert torch.equal(frozen(noise, labels), none(noise, labels))
    assert torch.equal(frozen.score(images, labels), none.score(images, labels))
    gammas = [each for name, each in frozen.named_parameters() if name.endswith("gamma")]
    assert [each.requires_grad for each in gammas] == [False, False]


@pytest.mark.parametrize("channels", [256, 128, 64, 32])
@pytest.mark.parametrize("size", [(16, 16), (14, 14), (7, 9)])
def test_controls_cost_what_attention_costs(channels, size):
    x = torch.zeros(1, channels, *size)
    macs = {
        kind: count_macs(attention_block(kind, channels, size), x)
        for kind in ("biggan", "frozen", "convolution")
    }
    assert macs["frozen"] == macs["biggan"]
    difference = abs(macs["convolution"] - macs["biggan"])
    # Half a channel between its two convolutions: what rounding may take.
    assert difference <= 0.5 * 10 * channels * size[0] * size[1]
    if size == (16, 16):
        assert difference == 0
    if size == (14, 14):
        assert difference <= 0.02 * macs["biggan"]


@pytest.mark.parametrize("attention", ["biggan", "common", "convolution"])
def test_attention_begins_as_the_identity_and_acts_later(attention):
    net = SAGAN(2, classes=5, **SMALL, attention=attention).eval()
    noise, images, labels = given(net)
    before = net(noise, labels), net.score(images, labels)
    for each in (net.generator, net.discriminator):
        gamma = each.get_parameter("attention1.gamma")
        assert gamma.shape == (1,)
        assert gamma.requires_grad
        assert not gamma.any()
        gamma.data.fill_(0.5)
    assert not torch.allclose(net(noise, labels), before[0])
    assert not torch.allclose(net.score(images, labels), before[1])


def test_where_attention_sits():
    def places(**options):
        net = SAGAN(**(SMALL | {"image_size": 32} | options))
        names = [name for name, _ in net.named_modules()]
        return [name for name in names if name.rpartition(".")[2].startswith("attention")]

    assert places() == ["generator.attention2", "discriminator.attention1"]
    assert places(attention_at=8) == ["generator.attention1", "discriminator.attention2"]
    assert places(attention_at=16, discriminator_attention_after=[2, 4]) == [
        "generator.attention2",
        "discriminator.attention2",
        "discriminator.attention4",
    ]
    assert places(attention="none") == []
    # One alone is the one in both.
    assert hasattr(SAGANGenerator(width=8), "attention2")
    assert hasattr(SAGANDiscriminator(width=8), "attention1")


def test_every_argument_is_in_the_configuration():
    conf = Path(__file__).resolve().parents[2] / "conf" / "model" / "sagan_gan.yaml"
    values = {
        key: value
        for key, value in yaml.safe_load(conf.read_text()).items()
        if key not in ("_target_", "defaults")
    }
    parameters = inspect.signature(SAGAN).parameters
    assert list(values) == list(parameters)
    widths = ("width", "discriminator_width")  # for CPUs there, as released here
    for key in set(values) - set(widths):
        assert values[key] in ("???", parameters[key].default), key

"""SAGANClassifier: any image size and channel count, attention where it was asked for."""

import pytest
import torch
from oracles import assert_near

from cvattn.cost import count_macs
from cvattn.models import SAGANClassifier

WIDTHS = (26, 8, 10)


def images(batch: int, model: SAGANClassifier) -> torch.Tensor:
    return torch.randn(batch, model.in_channels, *model.image_size)


@pytest.mark.parametrize("form", ["common", "pooled", "biggan", "unet", "convolution"])
@pytest.mark.parametrize(
    ("in_channels", "image_size"), [(1, (9, 11)), (3, (33, 17)), (2, (9, 9)), (5, (10, 64))]
)
def test_any_size_and_channels_forward_and_backward(in_channels, image_size, form):
    model = SAGANClassifier(
        7, in_channels=in_channels, image_size=image_size, widths=WIDTHS, attention=form
    )
    logits = model(images(3, model))
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) > 10
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(
    ("after", "sizes"),
    [
        (("stage2",), {"stage2": (5, 3)}),
        (("stem", "stage3"), {"stem": (22, 12), "stage3": (2, 1)}),
        (["stage1"], {"stage1": (11, 6)}),
        ((), {}),
    ],
)
def test_attention_stands_behind_the_named_layers(after, sizes):
    model = SAGANClassifier(5, image_size=(23, 13), widths=WIDTHS, attention_after=after)
    seen = {}
    for name, block in model.attention.items():
        block.register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: args[0].shape})
        )
    model(images(2, model))
    assert {name: tuple(shape[2:]) for name, shape in seen.items()} == sizes
    channels = dict(zip(("stem", "stage1", "stage2", "stage3"), (24, *WIDTHS), strict=True))
    assert all(shape[1] == channels[name] for name, shape in seen.items())


def test_other_sizes_than_that_it_was_built_for():
    model = SAGANClassifier(5, image_size=(21, 11), widths=WIDTHS).eval()
    other = SAGANClassifier(5, image_size=(9, 34), widths=WIDTHS).eval()
    with torch.no_grad():
        model.attention["stage2"].gamma.fill_(0.7)
    other.load_state_dict(model.state_dict())
    batch = images(3, other)
    assert torch.equal(model(batch), other(batch))


def test_without_attention_it_is_the_same_network():
    with_block = SAGANClassifier(5, image_size=(21, 11), widths=WIDTHS).eval()
    without = SAGANClassifier(5, image_size=(21, 11), widths=WIDTHS, attention="none").eval()
    ours = dict(with_block.state_dict())
    extra = {name for name in ours if name.startswith("attention.")}
    assert extra
    assert set(without.state_dict()) == set(ours) - extra
    without.load_state_dict({name: ours[name] for name in without.state_dict()})
    batch = images(3, with_block)
    assert torch.equal(with_block(batch), without(batch))  # gamma = 0
    with torch.no_grad():
        with_block.attention["stage2"].gamma.fill_(2.0)
    assert not torch.equal(with_block(batch), without(batch))


@pytest.mark.usefixtures("float64")
def test_the_head_reads_the_largest_value_of_each_channel_over_the_whole_map():
    model = SAGANClassifier(5, image_size=(33, 17), widths=WIDTHS).eval()
    seen = {}
    model.layers["stage3"].register_forward_hook(lambda _, __, out: seen.update(map=out))
    logits = model(images(3, model))
    assert seen["map"].shape == (3, 10, 4, 2)
    pooled = torch.stack([pixel for row in seen["map"].unbind(2) for pixel in row.unbind(2)])
    assert_near(logits, pooled.max(0).values @ model.head.weight.T + model.head.bias)


@pytest.mark.usefixtures("float64")
def test_channels_last_gives_the_same_logits():
    model = SAGANClassifier(5, image_size=(21, 11), widths=WIDTHS).eval()
    with torch.no_grad():
        model.attention["stage2"].gamma.fill_(0.7)
    batch = images(3, model)
    want = model(batch)
    model = model.to(memory_format=torch.channels_last)
    assert_near(model(batch.to(memory_format=torch.channels_last)), want)


@pytest.mark.usefixtures("float64")
def test_filters_start_as_the_identity_where_there_is_a_channel_to_copy():
    model = SAGANClassifier(5, widths=WIDTHS)
    first, second = model.layers["stage1"][0], model.layers["stage2"][0]
    x = torch.randn(2, 24, 7, 5)
    assert_near(first(x)[:, :24], x)
    x = torch.randn(2, 26, 7, 5)
    assert_near(second(x), x[:, :8])


def test_the_stem_is_fitted_to_images_and_then_stays():
    model = SAGANClassifier(5, image_size=(21, 11), widths=WIDTHS)
    before = model.layers["stem"][0].weight.clone()
    model.fit_to_images(torch.randn(50, 3, 21, 11))
    assert not torch.equal(model.layers["stem"][0].weight, before)
    assert not model.layers["stem"][0].weight.requires_grad


def test_the_default_spends_3_percent_and_more_on_attention_over_49_positions():
    images = torch.zeros(1, 3, 32, 32)
    whole, without = (
        count_macs(SAGANClassifier(10, attention=a), images) for a in ("common", "none")
    )
    assert (whole - without) / whole >= 0.03


@pytest.mark.parametrize("after", ["stage1", "stage2"])
def test_controls_cost_what_the_block_costs(after):
    images = torch.zeros(1, 3, 32, 32)
    whole, frozen, convolution, without = (
        count_macs(SAGANClassifier(10, attention=form, attention_after=[after]), images)
        for form in ("common", "frozen", "convolution", "none")
    )
    assert frozen == whole
    assert convolution - without == pytest.approx(whole - without, rel=0.03)


def test_frozen_attention_computes_and_changes_nothing():
    model = SAGANClassifier(5, image_size=(21, 11), widths=WIDTHS, attention="frozen")
    without = SAGANClassifier(5, image_size=(21, 11), widths=WIDTHS, attention="none")
    without.load_state_dict(model.state_dict(), strict=False)
    batch = images(3, model)
    logits = model(batch)
    assert torch.equal(logits, without(batch))
    logits.square().sum().backward()
    block = model.attention["stage2"]
    assert block.gamma.grad is None
    assert block.query.weight.grad.count_nonzero() == 0


@pytest.mark.usefixtures("float64")
def test_the_convolution_control_starts_as_the_identity_and_then_acts():
    model = SAGANClassifier(5, image_size=(21, 11), widths=WIDTHS, attention="convolution").eval()
    control = model.attention["stage2"]
    x = torch.randn(2, 8, 5, 3)
    assert torch.equal(control(x), x)
    with torch.no_grad():
        control.gamma.fill_(0.5)
    want = torch.nn.functional.gelu(control.first(x))
    want = x + 0.5 * control.second(want)
    assert_near(control(x), want)
    assert not torch.equal(control(x), x)


def test_the_default_has_about_2_million_parameters():
    count = sum(p.numel() for p in SAGANClassifier(10).parameters())
    assert 1.5e6 < count < 2.5e6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"attention_after": ["stage4"]},
            r"attention_after=\['stage4'\].*'stem', 'stage1', 'stage2'",
        ),
        ({"attention": "sagan"}, r"attention='sagan'; expected.*'common', 'pooled', 'biggan'"),
        ({"widths": (4, 8)}, r"widths=\[4, 8\]: expected 3"),
        ({"image_size": (32, 8)}, r"image_size=\(32, 8\).*at least 9 x 9"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        SAGANClassifier(5, **options)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 21, 8), r"image_size=\(21, 8\).*at least 9 x 9"),
        ((2, 1, 21, 11), "built for 3 channels, the images have 1"),
        ((3, 21, 11), r"got shape \(3, 21, 11\); add the batch dimension"),
    ],
)
def test_wrong_images_are_named(shape, message):
    model = SAGANClassifier(5, image_size=(21, 11), widths=WIDTHS)
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(shape))

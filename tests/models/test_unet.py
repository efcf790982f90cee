"""UNet: the formula, levels and skips, conditions that act."""

import math

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_accurate, assert_near, fill, outcome
from torch import Tensor, nn
from unets import KINDS, SMALL, ByHand, filled, given

from cvattn.models import UNet
from cvattn.models.unet_layers import (
    ResidualBlock,
    TimeEmbedding,
    UNetStage,
    group_norm,
    time_waves,
)


@pytest.mark.sweep(3)
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize(("timed", "classes"), [(True, 5), (True, 0), (False, 5), (False, 0)])
def test_outputs_and_gradients_are_those_of_the_formula(blocks, timed, classes):
    net = filled(2, 3, timed=timed, classes=classes, blocks=blocks)
    images, times, labels = given(net)
    inputs = [x for x in (images, times) if x is not None]
    ours = outcome(net, *inputs, labels=labels)
    assert_accurate(ours, outcome, ByHand.of(net), *inputs, labels=labels)


@pytest.mark.usefixtures("float64")
def test_a_time_is_waves_of_1000_steps():
    times = torch.tensor([0.0, 0.013, 0.5, 1.0])
    want = [
        [f(1000 * t * 10000 ** (-i / 5)) for f in (math.cos, math.sin) for i in range(5)]
        for t in times.tolist()
    ]
    assert_near(time_waves(times, 5), torch.tensor(want))


def test_waves_are_no_coarser_in_half_precision():
    times = torch.rand(7).bfloat16()
    assert torch.equal(time_waves(times, 5), time_waves(times.float(), 5))
    assert fill(TimeEmbedding(5, 7)).bfloat16()(times, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("in_channels", [64, 32])
def test_a_residual_block_and_the_waves_are_those_of_diffusers(in_channels):
    resnet = pytest.importorskip("diffusers.models.resnet", reason="pip install -e '.[peers]'")
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    theirs = resnet.ResnetBlock2D(
        in_channels=in_channels,
        out_channels=64,
        temb_channels=10,
        groups=in_channels // 4,
        groups_out=16,
        eps=1e-5,
        time_embedding_norm="scale_shift",
    )
    fill(theirs)
    names = {"time_emb_proj": "embed", "conv_shortcut": "shortcut"}
    state = {
        ".".join(names.get(part, part) for part in key.split(".")): value
        for key, value in theirs.state_dict().items()
    }
    ours = ResidualBlock(in_channels, 64, embed_dim=10)
    ours.load_state_dict(state)
    x, embedding = torch.randn(2, in_channels, 5, 7), torch.randn(2, 10)
    assert_near(
        ours.double()(x.double(), F.silu(embedding.double())),
        theirs.double()(x.double(), embedding.double()),
    )
    times = torch.rand(4)
    waves = embeddings.get_timestep_embedding(
        1000 * times, 10, flip_sin_to_cos=True, downscale_freq_shift=0
    )
    # Both take angles of up to 1000 in float32.
    assert (time_waves(times, 5) - waves).abs().max() < 1000 * torch.finfo(torch.float32).eps


@pytest.mark.sweep(10)
@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize(
    ("channels", "size", "multipliers", "at"),
    [
        ((1, None), (12, 20), (1, 2, 2), (1, 2)),
        ((3, 4), (7, 5), (1,), (0,)),
        ((2, 1), (22, 6), (3, 1), (0, 1)),
        ((5, 2), (4, 4), (1, 1, 2), (2,)),
        ((1, 1), (8, 24), (1, 2, 1, 2), ()),
    ],
)
def test_any_size_and_channels_forward_and_backward(attention, channels, size, multipliers, at):
    options = {"image_size": size, "multipliers": multipliers, "width": 7, "attention_at": at}
    net = filled(*channels, classes=3, attention=attention, blocks=2, **options)
    output = net(*given(net))
    assert output.shape == (3, channels[1] or channels[0], *size)
    output.square().mean().backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


def test_other_sizes_than_that_it_was_built_for():
    net, other = filled(2), UNet(2, **(SMALL | {"image_size": (20, 4)}))
    other.load_state_dict(net.state_dict())
    batch = given(other)
    assert torch.equal(net(*batch), other(*batch))


@pytest.mark.parametrize("patch_size", [2, 3])
def test_patches_are_pixels_of_more_channels(patch_size):
    size = (8 * patch_size, 12 * patch_size)
    net = filled(2, 3, image_size=size, patch_size=patch_size)
    plain = UNet(2 * patch_size**2, 3 * patch_size**2, **SMALL)
    plain.load_state_dict(net.state_dict())
    images, times, _ = given(net)
    patches = images.reshape(3, 2, 8, patch_size, 12, patch_size).permute(0, 1, 3, 5, 2, 4)
    output = plain(patches.flatten(1, 3), times)
    output = output.view(3, 3, patch_size, patch_size, 8, 12).permute(0, 1, 4, 2, 5, 3)
    assert torch.equal(net(images, times), output.reshape(3, 3, *size))


def test_a_new_network_answers_0_and_its_residual_blocks_are_the_identity():
    net = UNet(2, **SMALL)
    batch = given(net)
    assert torch.equal(net(*batch), torch.zeros(3, 2, 8, 12))
    x = torch.randn(3, 6, 8, 12)
    assert torch.equal(net.down0(x, torch.randn(3, 24)), x)
    nn.init.ones_(net.head.weight)
    assert net(*batch).abs().sum() > 0


@pytest.mark.parametrize("blocks", [1, 2])
def test_each_stage_up_is_given_the_output_of_its_mirror_image(blocks):
    net = filled(2, blocks=blocks)
    seen: dict[str, Tensor] = {}
    for name, module in net.named_children():
        if isinstance(module, UNetStage):
            module.register_forward_hook(
                lambda _, args, output, name=name: seen.update({name: (args[0], output)})
            )
    net(*given(net))
    down = [name for name in seen if name.startswith("down")]
    up = [name for name in seen if name.startswith("up")]
    assert len(down) == len(up) == 3 * blocks
    for before, after in zip(down, reversed(up), strict=True):
        kept = seen[before][1]
        assert torch.equal(seen[after][0][:, -kept.shape[1] :], kept)


@pytest.mark.parametrize("level", [0, 1])
def test_skips_carry_what_is_lost_below(level):
    net = filled(2)
    images, times, _ = given(net)
    with torch.no_grad():
        net.get_submodule(f"halve{level + 1}").weight.zero_()  # nothing of the image gets further
    assert not torch.allclose(net(images, times), net(images.flip(-1), times))
    with torch.no_grad():
        for above in range(level + 1):
            channels = 6 * (above + 1)
            stage = net.get_submodule(f"up{above}").residual
            stage.conv1.weight.zero_()
            stage.shortcut.weight[:, channels:] = 0.0
    assert torch.equal(net(images, times), net(images.flip(-1), times))


@pytest.mark.parametrize("timed", [True, False])
def test_conditions_act_on_each_image_by_itself(timed):
    net = filled(2, classes=4, timed=timed)
    image = torch.randn(1, 2, 8, 12)
    times = torch.full((5,), 0.3) if timed else None
    outputs = net(image.expand(5, -1, -1, -1), times, torch.arange(5))  # label 4 is "no class"
    apart = (outputs[:, None] - outputs).abs().amax((2, 3, 4))
    assert (apart[~torch.eye(5, dtype=torch.bool)] > 1e-3).all()
    if timed:
        times = torch.tensor([0.3, 0.301, 0.9, 0.0, 1.0])
        outputs = net(image.expand(5, -1, -1, -1), times, torch.full((5,), 2))
        apart = (outputs[:, None] - outputs).abs().amax((2, 3, 4))
        assert (apart[~torch.eye(5, dtype=torch.bool)] > 1e-3).all()


def test_groups_have_4_channels_or_more():
    for channels in range(1, 300):
        norm = group_norm(channels)
        assert norm.num_groups <= 32
        assert norm.num_groups == 1 or channels // norm.num_groups >= 3
        assert channels % 4 or channels // norm.num_groups >= 4
    assert [group_norm(n).num_groups for n in (32, 64, 96, 128, 512)] == [8, 16, 24, 32, 32]


def test_dropout_acts_in_training_only():
    net = filled(2, dropout=0.5)
    batch = given(net)
    assert not torch.equal(net(*batch), net(*batch))
    net.eval()
    assert torch.equal(net(*batch), net(*batch))

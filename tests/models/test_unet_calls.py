"""UNet in other layouts and precisions, compiled, exported, and what it refuses."""

import copy

import pytest
import torch
from oracles import assert_accurate, assert_near, call, outcome
from unets import KINDS, SMALL, ByHand, filled, given

from cvattn.models import UNet
from cvattn.models.unet_layers import ResidualBlock


@pytest.mark.usefixtures("float64")
def test_channels_last_gives_the_same():
    net = filled(2, classes=3)
    images, *conditions = given(net)
    want = net(images, *conditions)
    net = net.to(memory_format=torch.channels_last)
    assert_near(net(images.to(memory_format=torch.channels_last), *conditions), want)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_loses_what_the_formula_loses(autocast):
    def run(net, *inputs):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return net(*inputs)

    net = filled(2, classes=3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= 0.5
    inputs = given(net)
    if not autocast:
        net = net.bfloat16()
        inputs = (inputs[0].bfloat16(), inputs[1].bfloat16(), inputs[2])
    output = run(net, *inputs)
    assert output.dtype == torch.bfloat16
    assert_accurate(output, run, ByHand.of(net), *inputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    # Whether it is one graph does not depend on who makes code of it, which takes most of the time.
    ("attention", "backend"),
    [("unet", "inductor"), ("window", "aot_eager"), ("convolution", "aot_eager")],
)
def test_it_compiles_in_one_graph(attention, backend):
    net = filled(2, classes=3, attention=attention, multipliers=(1, 2), attention_at=(1,))
    images, times, labels = given(net)
    ours = copy.deepcopy(net)
    ours.compile(fullgraph=True, backend=backend)
    found = outcome(ours, images, times, labels=labels)
    assert_accurate(found, outcome, net, images, times, labels=labels)


@pytest.mark.slow
@pytest.mark.parametrize("attention", KINDS)
def test_it_is_exported_for_any_number_of_images(attention):
    net = filled(2, classes=3, attention=attention).eval()
    dynamic = ({0: torch.export.Dim("batch")},) * 3
    program = torch.export.export(net, given(net), dynamic_shapes=dynamic).module()
    batch = given(net, batch=5)
    assert_accurate(program(*batch), call, net, *batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 0}, "in_channels=0 must be at least 1"),
        ({"out_channels": -1}, "out_channels=-1 must be at least 1"),
        ({"width": 0}, "width=0 must be at least 1"),
        ({"blocks": 0}, "blocks=0 must be at least 1"),
        ({"classes": -1}, r"classes=-1 must be 0 \(no labels\) or more"),
        ({"multipliers": ()}, r"multipliers=\[\]: expected one for each level"),
        ({"multipliers": (1, 0)}, r"multipliers=\[1, 0\]: expected one for each level"),
        ({"attention_at": (1, 3)}, r"attention_at=\[3\]: with 3 multipliers.*\[0, 1, 2\]"),
        ({"attention_at": (-1,)}, r"attention_at=\[-1\]: with 3 multipliers"),
        ({"attention": "linear"}, r"attention='linear'; expected one of \('unet', 'common'"),
        ({"dropout": 1.0}, r"dropout=1.0 is not a probability in \[0, 1\)"),
        (
            {"image_size": (30, 8)},
            r"\(30, 8\).*3 levels of patches of 1.*divisible by 4.*height of 28 or 32 and.* 8$",
        ),
        ({"patch_size": 3, "image_size": (24, 20)}, "divisible by 12.*width of 12 or 24$"),
        ({"image_size": (8, 2)}, "height of 8 and a width of 4$"),
        ({"image_size": (0, 8)}, "height of 4 and a width of 8$"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        UNet(**(SMALL | options))


IMAGES, TIMES, LABELS = torch.zeros(3, 2, 8, 12), torch.zeros(3), torch.zeros(3, dtype=torch.long)


@pytest.mark.parametrize(
    ("kind", "inputs", "error", "message"),
    [
        ("both", (IMAGES, TIMES), ValueError, "labels: the network was built with classes > 0"),
        (
            "both",
            (IMAGES, None, LABELS),
            ValueError,
            "times: the network was built with timed=True",
        ),
        ("time", (IMAGES, TIMES, LABELS), ValueError, "labels: the network takes none"),
        ("none", (IMAGES, TIMES), ValueError, "times: the network takes none; build it with timed"),
        ("time", (IMAGES, TIMES[0]), ValueError, r"times are \(\); expected.*3 images, \(3,\)"),
        ("time", (IMAGES, TIMES[:2]), ValueError, r"times are \(2,\); expected"),
        ("time", (IMAGES, TIMES[:, None]), ValueError, r"times are \(3, 1\); expected"),
        ("time", (IMAGES, LABELS), TypeError, "times are torch.int64; expected floating point"),
        ("both", (IMAGES, TIMES, LABELS[:1]), ValueError, r"labels are \(1,\); expected"),
        (
            "both",
            (IMAGES, TIMES, TIMES),
            TypeError,
            "labels are torch.float32; expected torch.int64",
        ),
        ("both", (IMAGES, TIMES, LABELS + 6), IndexError, "index out of range"),
        ("none", (IMAGES[:, :1],), ValueError, "built for 2 channels, the images have 1"),
        ("none", (IMAGES[0],), ValueError, "add the batch dimension"),
        ("none", (IMAGES[..., :-1],), ValueError, r"\(8, 11\).*a width of 8 or 12"),
    ],
)
def test_wrong_calls_are_named(kind, inputs, error, message):
    conditions = {"both": (True, 5), "time": (True, 0), "none": (False, 0)}
    timed, classes = conditions[kind]
    net = UNet(2, **SMALL, timed=timed, classes=classes)
    with pytest.raises(error, match=message):
        net(*inputs)


@pytest.mark.parametrize("embed_dim", [None, 5])
def test_a_residual_block_is_given_an_embedding_or_none_as_it_was_built(embed_dim):
    block = ResidualBlock(4, 6, embed_dim=embed_dim)
    embedding = torch.zeros(2, 5) if embed_dim is None else None
    with pytest.raises(ValueError, match="if and only if it was built with embed_dim"):
        block(torch.zeros(2, 4, 3, 5), embedding)

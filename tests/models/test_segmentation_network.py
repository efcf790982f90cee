"""The segmentation network: sizes, what a pixel is told of, equal cost, compiled, exported."""

import copy

import pytest
import torch

import cvattn
from cvattn import checkpoint
from cvattn.cost import count_macs
from cvattn.data.images.digit_scenes import REACH
from cvattn.models import SegmentationNetwork

SMALL = {"encoder": "test_resnet", "in_channels": 2, "image_size": (20, 36), "width": 12}
HEADS = ("fcn", "attention", "dilated")


def make(head="attention", **options) -> SegmentationNetwork:
    """None of whose parts does nothing."""
    network = SegmentationNetwork(5, **{**SMALL, "head": head, **options})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for _ in range(9):  # batch norm's averages
            network(torch.randn(7, network.in_channels, 20, 36))
    return network.eval()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [(20, 36), (19, 31), (41, 24)])
def test_each_pixel_of_any_size_has_logits(head, size):
    network = make(head)
    images = torch.randn(3, 2, *size)
    logits = network(images)
    assert logits.shape == (3, 5, *size)
    assert logits.std() > 0.01
    assert torch.allclose(network(images[1:2]), logits[1:2], atol=1e-5)


def reach(network, size, at):
    """How far away rows and columns are that the logits of a pixel depend on, at most."""
    images = torch.rand(2, network.in_channels, *size, requires_grad=True)
    network(images)[:, :, at[0], at[1]].sum().backward()
    assert images.grad is not None
    there = images.grad.abs().amax((0, 1)).nonzero()
    return [(there[:, side] - at[side]).abs().max().item() for side in (0, 1)]


def test_without_a_far_look_a_pixel_is_told_of_less_than_the_legends_distance():
    """Of the default network, whose comparison on data=digit_scenes rests on it."""
    found = {}
    for head in HEADS:
        torch.manual_seed(5)
        network = SegmentationNetwork(5, in_channels=1, image_size=(48, 96), head=head).eval()
        with torch.no_grad():
            for parameter in network.parameters():  # positive throughout: no ReLU hides anything
                parameter.abs_().add_(0.01)
        places = [(y, x) for y, x in ((60, 88), (61, 91), (63, 90))]
        found[head] = [
            max(far) for far in zip(*(reach(network, (128, 192), p) for p in places), strict=True)
        ]
    assert all(23 <= far <= REACH - 2 for far in found["fcn"])
    assert found["attention"] == [67, 103]  # everything
    # Beyond the legend, from wherever a digit of data=digit_scenes is.
    assert found["dilated"][1] > REACH + 24


def test_heads_of_equal_cost():
    macs = {
        head: count_macs(
            SegmentationNetwork(5, in_channels=1, image_size=(48, 96), head=head),
            torch.zeros(1, 1, 48, 96),
        )
        for head in HEADS
    }
    assert macs["attention"] > 1.1 * macs["fcn"]
    added = macs["attention"] - macs["fcn"]
    assert macs["dilated"] - macs["fcn"] == pytest.approx(added, rel=0.05)


def test_a_new_network_with_attention_is_the_one_without():
    torch.manual_seed(3)
    plain = SegmentationNetwork(5, **SMALL, head="fcn").eval()
    images = torch.randn(2, 2, 20, 36)
    for head in ("attention", "dilated"):
        network = SegmentationNetwork(5, **SMALL, head=head).eval()
        network.load_state_dict(plain.state_dict(), strict=False)
        assert torch.equal(network(images), plain(images))


def test_the_stride_and_attention_in_the_encoder():
    images = torch.zeros(1, 2, 64, 96)
    for stride in (4, 8, 16):
        (found,) = make(stride=stride).encoder(images)
        assert found.shape[2:] == (64 // stride, 96 // stride)
    network = make(stride=8, attention={"after": "layer2", "block": "pooled"})
    assert network.encoder.layer2.inserted_attention.gamma.shape == (1,)
    assert not any(name.startswith("encoder.layer3") for name, _ in network.named_modules())


@pytest.mark.parametrize("encoder", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_an_encoder_takes_the_weights_of_a_classifier(encoder, tmp_path):
    """Its map is then that of the classifier's own layers, and blocks in it keep their weights."""
    import timm

    torch.manual_seed(23)
    classifier = timm.create_model(encoder, num_classes=9, in_chans=2).eval()
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    options = {"encoder": encoder, "stride": 8, "pretrained": str(tmp_path / "weights.pth")}
    network = SegmentationNetwork(5, **{**SMALL, **options}).eval()
    head = copy.deepcopy(network.near.state_dict())
    images = torch.randn(2, 2, 64, 96)
    before = network.encoder(images)[0]
    assert "weights.pth" in network.load_pretrained()
    (found,) = network.encoder(images)
    assert not torch.equal(found, before)
    kept = [
        each for each in classifier.forward_intermediates(images)[1] if each.shape == found.shape
    ]
    assert any(torch.allclose(found, each, atol=1e-5) for each in kept)
    assert all(torch.equal(value, head[name]) for name, value in network.near.state_dict().items())
    assert SegmentationNetwork(5, **SMALL).load_pretrained() is None
    other = {"test_resnet": "test_convnext"}.get(encoder, "test_resnet")
    wrong = SegmentationNetwork(5, **{**SMALL, **options, "encoder": other})
    with pytest.raises(ValueError, match=f"is not of {other}"):
        wrong.load_pretrained()


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_compiled_and_exported_networks_give_the_same_masks(head):
    network = make(head)
    images = torch.randn(3, 2, 20, 36)
    with torch.no_grad():
        want = network(images)
        compiled = torch.compile(copy.deepcopy(network), backend="aot_eager")(images)
        exported = torch.export.export(network, (images,)).module()(images)
    for found in (compiled, exported):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
        assert torch.equal(found.argmax(1), want.argmax(1))
    assert len(want.argmax(1).unique()) > 1


def test_a_checkpoint_rebuilds_it(tmp_path):
    args = {**SMALL, "image_size": [20, 36], "num_classes": 5, "head": "dilated"}
    network = make("dilated")
    checkpoint.save(tmp_path / "s.ckpt", network, args=args, meta={})
    images = torch.randn(3, 2, 20, 36)
    assert torch.equal(cvattn.load(tmp_path / "s.ckpt")(images), network(images))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"head": "nonlocal"}, r"head='nonlocal'; expected one of \('fcn', 'attention'"),
        ({"encoder": "resnet10"}, "timm .* has no network 'resnet10'; did you mean"),
        ({"encoder": "vit_tiny_patch16_224"}, "takes images of one size: no CNN"),
        ({"stride": 3}, "the maps of test_resnet are 2, 4, 8, 16, 32 times smaller"),
        ({"attention": {"after": "layer9"}}, "layer9"),
        ({"attention": {"behind": "layer2"}}, r"unknown \['behind'\]"),
        ({"width": 0}, "positive"),
    ],
)
def test_refusals(options, said):
    with pytest.raises(ValueError, match=said):
        SegmentationNetwork(5, **{**SMALL, **options})


def test_images_of_other_channels():
    with pytest.raises(ValueError, match="built for 2 channels"):
        make()(torch.zeros(1, 3, 20, 36))

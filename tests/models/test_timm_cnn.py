"""TimmCNN: timm's network, bit for bit, with attention inside; weights from files; refusals."""

import pytest
import torch
from oracles import assert_accurate
from safetensors.torch import save_file

import cvattn
from cvattn import SelfAttention2d, checkpoint
from cvattn.cost import count_macs
from cvattn.models import TimmCNN

NAME = "test_resnet"  # timm's own for tests: 0.4 M parameters
TWO = {"after": ["layer2", "layer3.0"]}


def timm_network(**options):
    import timm

    return timm.create_model(options.pop("name", NAME), **options)


def blocks(network):
    return {n: m for n, m in network.named_modules() if isinstance(m, SelfAttention2d)}


def test_new_attention_leaves_timms_logits_as_they_are():
    ours = TimmCNN(NAME, 7, in_channels=1, attention=TWO).eval()
    assert list(blocks(ours)) == [
        "cnn.layer2.inserted_attention",
        "cnn.layer3.0.inserted_attention",
    ]
    theirs = timm_network(num_classes=7, in_chans=1).eval()
    state = {k: v for k, v in ours.cnn.state_dict().items() if "inserted" not in k}
    theirs.load_state_dict(state)
    images = torch.randn(3, 1, 64, 96)
    want = theirs(images)
    assert torch.equal(ours(images), want)
    with torch.no_grad():
        for block in blocks(ours).values():
            block.gamma.fill_(0.7)
    assert (ours(images) - want).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("block", "found"),
    [("pooled", {"kv_pool": 2}), ("biggan", {"kv_pool": 2}), ("common", {"kv_pool": 1})],
)
def test_blocks_by_name(block, found):
    ours = TimmCNN(NAME, 7, attention={"after": "layer3", "block": block})
    (made,) = blocks(ours).values()
    assert made.kv_pool == found["kv_pool"]
    assert (made.proj is not None) == (block == "biggan")


def test_the_products_of_blocks_are_counted():
    """Of a 32 x 40 image the map behind layer2 is 16 x 20 with 48 channels, then 8 x 10, 192."""
    image = torch.zeros(1, 3, 32, 40)
    with_blocks, without = (
        count_macs(TimmCNN(NAME, 7, small_images=True, attention=attention), image)
        for attention in (TWO, None)
    )
    assert with_blocks - without == sum(
        n * c * (c // 8 + c // 8 + c) + n * n * (c // 8 + c) for n, c in ((320, 48), (80, 192))
    )


def test_a_control_and_no_attention_at_all():
    frozen = TimmCNN(NAME, 7, attention={"after": "layer[34]", "block": "frozen"})
    assert [b.gamma.requires_grad for b in blocks(frozen).values()] == [False, False]
    for attention in (None, {}, {"after": []}, {"after": "layer3", "block": "none"}):
        assert blocks(TimmCNN(NAME, 7, attention=attention)) == {}


def test_a_convolution_of_equal_cost():
    """14 x 14 positions of 48 channels and 7 x 7 of 192, to a channel of the one between."""
    image = torch.zeros(1, 3, 32, 32)
    costs = {
        block: count_macs(TimmCNN(NAME, 7, input_size=112, attention=TWO | {"block": block}), image)
        for block in ("common", "convolution")
    }
    assert abs(costs["common"] - costs["convolution"]) <= 9 * (196 * 48 + 49 * 192)
    network = TimmCNN(NAME, 7, input_size=112, attention=TWO | {"block": "convolution"}).eval()
    without = TimmCNN(NAME, 7, input_size=112).eval()
    without.load_state_dict({k: v for k, v in network.state_dict().items() if "inserted" not in k})
    assert torch.equal(network(image), without(image))
    with pytest.raises(ValueError, match="set input_size"):
        TimmCNN(NAME, 7, attention=TWO | {"block": "convolution"})


def test_small_images_are_enlarged_before_the_first_layer():
    network = TimmCNN(NAME, 7, input_size=62).eval()
    given = torch.randn(2, 3, 31, 43)
    larger = torch.nn.functional.interpolate(given, (62, 86), mode="bilinear")
    assert torch.equal(network(given), network.cnn(larger))
    assert torch.equal(network(larger), network.cnn(larger))
    with pytest.raises(ValueError, match=r"\(63, 90\) are larger than input_size=62"):
        network(torch.zeros(1, 3, 63, 90))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("classes", [11, 7])
def test_weights_of_a_file(tmp_path, suffix, classes):
    """The head too where it has as many classes, else zeros; blocks stay as they were drawn."""
    theirs = timm_network(num_classes=11)
    path = tmp_path / f"weights.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(theirs.state_dict(), path)
    ours = TimmCNN(NAME, classes, pretrained=str(path), attention=TWO)
    before = {name: value.clone() for name, value in ours.cnn.state_dict().items()}
    ours.load_pretrained()
    given, now = theirs.state_dict(), ours.cnn.state_dict()
    blocks_keys = {name for name in now if "inserted_attention" in name}
    assert len(blocks_keys) == 2 * 7
    assert all(torch.equal(now[name], before[name]) for name in blocks_keys)
    head = {"fc.weight", "fc.bias"} if classes == 7 else set()
    assert all(torch.equal(now[name], given[name]) for name in given.keys() - head)
    assert all(now[name].eq(0).all() for name in head)


def test_weights_for_colour_in_a_grey_network(tmp_path):
    theirs = timm_network(num_classes=11)
    torch.save({"state_dict": theirs.state_dict(), "epoch": 3}, tmp_path / "last.pth.tar")
    ours = TimmCNN(NAME, 11, in_channels=1, pretrained=str(tmp_path / "last.pth.tar"))
    ours.load_pretrained()
    # Grey is the colour whose channels are equal: filters are summed over them.
    filters = theirs.conv1[0].weight
    assert_accurate(ours.cnn.conv1[0].weight, lambda w: w.sum(1, keepdim=True), filters)


def test_a_checkpoint_brings_its_weights_and_needs_no_others(tmp_path):
    args = {"name": NAME, "num_classes": 5, "small_images": True, "attention": {"after": "layer3"}}
    network = TimmCNN(**args).eval()
    with torch.no_grad():
        blocks(network)["cnn.layer3.inserted_attention"].gamma.fill_(-0.7)
    args["pretrained"] = str(tmp_path / "gone.pth")
    checkpoint.save(tmp_path / "a.ckpt", network, args=args, meta={"classes": []})
    loaded = cvattn.load(tmp_path / "a.ckpt")
    images = torch.randn(2, 3, 32, 40)
    assert torch.equal(loaded(images), network(images))


def test_weights_of_a_run_of_ours(tmp_path):
    """The way from a trained CNN to the same with attention, and from there to other classes."""
    path = tmp_path / "last.ckpt"
    first = TimmCNN(NAME, 11, in_channels=1)
    checkpoint.save(path, first, args={"name": NAME, "num_classes": 11, "in_channels": 1}, meta={})
    second = TimmCNN(NAME, 11, in_channels=1, pretrained=str(path), attention=TWO)
    second.load_pretrained()
    images = torch.randn(2, 1, 40, 32)
    assert torch.equal(second.eval()(images), first.eval()(images))

    with torch.no_grad():
        for block in blocks(second).values():
            block.gamma.fill_(-0.7)
    checkpoint.save(path, second, args={}, meta={})
    third = TimmCNN(NAME, 5, in_channels=1, pretrained=str(path), attention=TWO)
    third.load_pretrained()
    now, given = third.cnn.state_dict(), second.cnn.state_dict()
    changed = {key for key in given if not torch.equal(now[key], given[key])}
    assert changed == {"fc.weight", "fc.bias"}
    without = TimmCNN(NAME, 11, in_channels=1, pretrained=str(path))
    message = r"14 unknown \(layer2\.ins.*; it has blocks after \['layer2', 'layer3\.0'\]: att"
    with pytest.raises(ValueError, match=message):
        without.load_pretrained()


def test_wrong_files_are_named(tmp_path):
    theirs = timm_network(num_classes=11)
    path = tmp_path / "other.pth"
    network = TimmCNN(NAME, 7, pretrained=str(path))
    with pytest.raises(ValueError, match=r"other\.pth: there is no such file"):
        network.load_pretrained()
    path.write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"other\.pth: not a file of weights"):
        network.load_pretrained()
    state = theirs.state_dict()
    state["layer9.weight"] = state.pop("layer4.0.bn1.weight")
    torch.save(state, path)
    missing = r"not of test_resnet: 1 keys are missing \(layer4\.0\.bn1\.weight\), 1 unknown \(lay"
    with pytest.raises(ValueError, match=missing):
        network.load_pretrained()
    torch.save(theirs.state_dict() | {"layer4.0.bn1.weight": torch.zeros(5)}, path)
    with pytest.raises(ValueError, match=r"cannot take these weights: .*layer4\.0\.bn1\.weight"):
        network.load_pretrained()


def test_weights_that_cannot_be_had(monkeypatch):
    network = TimmCNN(NAME, 7, pretrained=True)
    monkeypatch.setenv("CVATTN_OFFLINE", "1")
    with pytest.raises(ValueError, match="CVATTN_OFFLINE=1 forbids; pretrained=FILE takes your"):
        network.load_pretrained()
    monkeypatch.setenv("CVATTN_OFFLINE", "0")

    def unreachable(*_, **options):
        assert options["pretrained"] is True
        raise ConnectionError("the hub does not answer\nwith a page of reasons")

    monkeypatch.setattr("timm.create_model", unreachable)
    with pytest.raises(ValueError, match=r"these weights: the hub does not answer with a .*=FILE"):
        network.load_pretrained()


WRONG = {
    "name": ({"name": "resnet_18"}, "no network 'resnet_18'; did you mean .*resnet18"),
    "nothing near": ({"name": "?"}, r"no network '\?'; timm.list_models\(\) lists them"),
    "tag": ({"name": "resnet18.a9"}, r"no weights 'resnet18\.a9'; there are: resnet18\.a1_in1k"),
    "no weights": (
        {"name": "mobilenetv2_035", "pretrained": True},
        "no weights for mobilenetv2_035",
    ),
    "one size": ({"name": "test_vit"}, "test_vit takes images of one size: no CNN"),
    "stem and size": (
        {"small_images": True, "input_size": 112},
        "input_size=112 enlarges small images and small_images=True .*: choose one",
    ),
    "no size": ({"input_size": 0}, "input_size=0 must be at least 1"),
    "layer": ({"attention": {"after": "layer5"}}, "no layer 'layer5'; did you mean layer4"),
    "block": (
        {"attention": {"after": "layer3", "block": "bigan"}},
        r"attention\.block='bigan'; did you mean biggan\?",
    ),
    "key": ({"attention": {"behind": "layer3"}}, r"unknown \['behind'\]; expected 'after' and"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG.keys())
def test_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        TimmCNN(**({"name": NAME, "num_classes": 7} | options))


def test_images_of_other_channels():
    with pytest.raises(ValueError, match="built for 3 channels, the images have 1"):
        TimmCNN(NAME, 7)(torch.zeros(2, 1, 32, 32))


@pytest.mark.parametrize("block", [SelfAttention2d, SelfAttention2d.biggan])
def test_where_timm_takes_an_attention_layer(block):
    """timm calls the class with the channels, a device and a dtype, and puts it into all blocks."""
    network = timm_network(num_classes=7, zero_init_last=False, block_args={"attn_layer": block})
    network.eval()
    made = blocks(network)
    assert len(made) == 4
    assert all(name.endswith(".se") for name in made)
    images = torch.randn(2, 3, 64, 96)
    before = network(images)
    with torch.no_grad():
        for each in made.values():
            each.gamma.fill_(0.7)
    assert (network(images) - before).abs().max() > 1e-4
    like = {"device": "cpu", "dtype": torch.float64}
    assert {p.dtype for p in block(16, **like).parameters()} == {torch.float64}

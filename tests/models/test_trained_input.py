"""Trained weights get images as in their training, however other data normalises them."""

import pytest
import timm
import torch
from oracles import assert_accurate
from safetensors.torch import save_file

import cvattn
from cvattn import checkpoint
from cvattn.models import SegmentationNetwork, TimmCNN
from cvattn.models.trained_input import TrainedInput

NAME = "resnet10t"
MEAN, STD = (0.31, 0.47, 0.62), (0.19, 0.23, 0.41)


def weights(path, channels=3):
    """A file of weights of timm's, and the network that they are of."""
    theirs = timm.create_model(NAME, num_classes=11, in_chans=channels).eval()
    save_file(theirs.state_dict(), path)
    return str(path), theirs


def as_wanted(pixels, mean, std):
    of_channels = [torch.tensor(values)[:, None, None] for values in (mean, std)]
    return (pixels - of_channels[0]) / of_channels[1]


def test_pixels_reach_timms_weights_as_timm_normalises_them(tmp_path):
    path, theirs = weights(tmp_path / "a.safetensors")
    ours = TimmCNN(NAME, 11, pretrained=path).eval()
    ours.load_pretrained()
    pixels = torch.rand(2, 3, 41, 37)
    ours.set_normalisation(MEAN, STD)
    cfg, found = theirs.pretrained_cfg, []
    assert cfg["std"] != STD
    ours.cnn.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    ours(as_wanted(pixels, MEAN, STD))
    assert_accurate(found[0], lambda x: as_wanted(x, *(cfg[k] for k in ("mean", "std"))), pixels)


def test_equal_normalisation_changes_no_bit(tmp_path):
    path, theirs = weights(tmp_path / "a.safetensors")
    ours = TimmCNN(NAME, 11, pretrained=path).eval()
    ours.load_pretrained()
    images = torch.randn(2, 3, 41, 37)
    assert torch.equal(ours(images), theirs(images))  # nobody has said how they come
    ours.set_normalisation(theirs.pretrained_cfg["mean"], theirs.pretrained_cfg["std"])
    assert torch.equal(ours(images), theirs(images))
    scratch = TimmCNN(NAME, 11)
    before = scratch.state_dict().keys()
    scratch.set_normalisation(MEAN, STD)
    assert before == scratch.state_dict().keys() == {f"cnn.{key}" for key in theirs.state_dict()}


def test_grey_images_take_colours_mean(tmp_path):
    path, theirs = weights(tmp_path / "a.safetensors")
    ours = TimmCNN(NAME, 11, in_channels=1, pretrained=path).eval()
    ours.load_pretrained()
    ours.set_normalisation([0.3], [0.2])
    mean, std = (sum(theirs.pretrained_cfg[key]) / 3 for key in ("mean", "std"))
    pixels = torch.rand(2, 1, 8, 9)
    found = ours.trained_input((pixels - 0.3) / 0.2)
    assert_accurate(found, lambda x: (x - mean) / std, pixels)


def run(path, network, **meta):
    """What a run of the network writes."""
    args = {"name": NAME, "num_classes": 11, "pretrained": network.pretrained}
    checkpoint.save(path, network, args=args, meta={"classes": [], **meta})
    return str(path)


def test_from_run_to_run_to_run(tmp_path):
    """What the first network saw, the third one sees, whatever each data set's normalisation is."""
    first = TimmCNN(NAME, 11)
    path = run(tmp_path / "a.ckpt", first, mean=[0.2, 0.3, 0.4], std=[0.5, 0.6, 0.7])
    second = TimmCNN(NAME, 11, pretrained=path)
    second.load_pretrained()
    second.set_normalisation(MEAN, STD)
    path = run(tmp_path / "b.ckpt", second, mean=list(MEAN), std=list(STD))
    third = TimmCNN(NAME, 11, pretrained=path)
    third.load_pretrained()
    third.set_normalisation(0.5, 0.25)
    pixels = torch.rand(2, 3, 8, 9)
    wanted = as_wanted(pixels, [0.2, 0.3, 0.4], [0.5, 0.6, 0.7])
    for network, (mean, std) in ((second, (MEAN, STD)), (third, ([0.5] * 3, [0.25] * 3))):
        found = network.trained_input(as_wanted(pixels, mean, std))
        torch.testing.assert_close(found, wanted, rtol=0, atol=32 * torch.finfo(torch.float32).eps)
    loaded = cvattn.load(path)
    images = as_wanted(torch.rand(2, 3, 41, 37), MEAN, STD)
    assert torch.equal(loaded(images), second.eval()(images))


def test_a_run_that_does_not_say_its_normalisation(tmp_path):
    """Its images came as these do, as far as anybody knows."""
    path = run(tmp_path / "a.ckpt", TimmCNN(NAME, 11))
    network = TimmCNN(NAME, 11, pretrained=path)
    network.load_pretrained()
    network.set_normalisation(MEAN, STD)
    images = torch.randn(1, 3, 8, 9)
    assert torch.equal(network.trained_input(images), images)


def test_a_checkpoint_of_before_it_was_there(tmp_path):
    """It was trained on images as they came."""
    path, _ = weights(tmp_path / "a.safetensors")
    network = TimmCNN(NAME, 11, pretrained=path).eval()
    network.load_pretrained()
    old = run(tmp_path / "old.ckpt", network, mean=list(MEAN), std=list(STD))
    content = torch.load(old, weights_only=True)
    for key in ("scale", "shift"):
        del content["state_dict"][f"network.trained_input.{key}"]
    torch.save(content, old)
    images = torch.randn(2, 3, 41, 37)
    assert torch.equal(cvattn.load(old)(images), network(images))


def test_the_encoder_of_a_segmentation_network(tmp_path):
    path, theirs = weights(tmp_path / "a.safetensors")
    network = SegmentationNetwork(5, encoder=NAME, pretrained=path)
    network.load_pretrained()
    network.set_normalisation(MEAN, STD)
    pixels, found = torch.rand(2, 3, 32, 40), []
    network.encoder.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    network(as_wanted(pixels, MEAN, STD))
    cfg = theirs.pretrained_cfg
    assert_accurate(found[0], lambda x: as_wanted(x, cfg["mean"], cfg["std"]), pixels)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.1, 0.2), 1.0, "mean has 2 values; expected one, or one for each of the 3 channels"),
        (0.1, (1.0, 0.0, 1.0), r"std=\[1.0, 0.0, 1.0\]; expected numbers above 0"),
    ],
)
def test_constants_that_normalise_nothing(mean, std, message):
    module = TrainedInput(3)
    module.wanted = 0.5, 0.5
    with pytest.raises(ValueError, match=message):
        module.convert(mean, std)
    assert torch.equal(module.scale, torch.ones(3, 1, 1))

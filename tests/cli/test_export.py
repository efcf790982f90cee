"""cvattn export: files that give what the network gives, or no file."""

import json
import re

import pytest
import torch
from oracles import assert_accurate, call
from small_networks import DIGITS, SAGAN, write, write_unet

import cvattn
from cvattn import SAGANClassifier
from cvattn.cli import export, main
from cvattn.cli.exported_call import open_call
from cvattn.models import TimmCNN
from cvattn.models.flow import draw_noise, generate

pytestmark = pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.10
TIMM = {"name": "test_resnet", "num_classes": 10, "small_images": True}
TIMM |= {"attention": {"after": ["layer2", "layer3"]}}


def images_of(batch, height, width, channels=3):
    return torch.randn(batch, channels, height, width)


def test_a_vit_as_torchs_program(vit_7x13, tmp_path, capsys):
    path, network = vit_7x13
    target = tmp_path / "vit.pt2"
    assert main(["export", str(path), "--to", "torchexport", "-o", str(target)]) == 0
    printed = capsys.readouterr().out
    assert "images (batch, 1, 7, 13), float32: pixels scaled to 0..1, then" in printed
    assert "mean [0.4], std [0.25]" in printed
    assert "batches of 1, 2, 5 and sizes of 7 x 13: off by at most" in printed
    assert "(bound 1e-04)" in printed
    held = {"cvattn.json": ""}
    program = torch.export.load(target, extra_files=held)
    description = json.loads(held["cvattn.json"])
    assert description["classes"] == ["a cat", "dog", "[b]eel", "output 3"]
    assert description["input"] == ["batch", 1, 7, 13]
    assert_plain(program)
    for batch in (1, 7):
        images = images_of(batch, 7, 13, channels=1)
        assert_accurate(program.module()(images), call, network, images)
    assert [each.name for each in tmp_path.iterdir()] == ["vit.pt2"]


def assert_plain(program):
    """Operators of torch alone, so that it runs where cvattn is not."""
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.scaled_dot_product_attention.default" in names
    assert not [name for name in names if "cvattn" in name]


def small_timm(path):
    torch.manual_seed(5)
    network = TimmCNN(**TIMM)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.endswith("gamma"):
                value.fill_(0.7)
        network(images_of(9, 32, 32))  # batch norm's statistics
    cvattn.checkpoint.save(path, network, args=TIMM, meta=DIGITS)


@pytest.fixture(scope="module", params=["sagan", "released sagan", "timm"])
def cnn(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("cnn") / "last.ckpt"
    if request.param == "timm":
        small_timm(path)
    else:
        attention = {"attention": "biggan"} if request.param == "released sagan" else {}
        write(path, SAGANClassifier, SAGAN | attention, DIGITS)
    return path


@pytest.mark.slow
def test_cnns_as_onnx_of_any_size(cnn):
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -e '.[export]'")
    assert main(["export", str(cnn), "--to", "onnx"]) == 0
    network = cvattn.load(cnn)
    session = onnxruntime.InferenceSession(cnn.with_suffix(".onnx"))
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    held = session.get_modelmeta().custom_metadata_map
    assert json.loads(held["mean"]) == DIGITS["mean"]
    assert json.loads(held["std"]) == DIGITS["std"]
    assert json.loads(held["classes"]) == DIGITS["classes"]
    assert "(x - mean) / std" in held["preprocessing"]
    for size in ((7, 41, 35), (1, 32, 32), (3, 24, 59)):
        images = images_of(*size)
        (got,) = session.run(None, {"images": images.numpy()})
        assert_accurate(torch.from_numpy(got), call, network, images)


@pytest.mark.slow
def test_cnns_as_torchs_program_of_any_size(cnn):
    assert main(["export", str(cnn), "--to", "torchexport"]) == 0
    network, program = cvattn.load(cnn), torch.export.load(cnn.with_suffix(".pt2"))
    assert_plain(program)
    for size in ((7, 41, 35), (1, 32, 32), (3, 24, 59)):
        images = images_of(*size)
        assert_accurate(program.module()(images), call, network, images)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "torchexport"])
@pytest.mark.parametrize("classes", [3, 0])
def test_what_makes_images_makes_the_same_ones(to, classes, tmp_path, capsys):
    if to == "onnx":
        pytest.importorskip("onnxruntime", reason="pip install -e '.[export]'")
    path = write_unet(tmp_path / "last.ckpt", classes=classes)
    assert main(["export", str(path), "--to", to]) == 0
    printed = capsys.readouterr().out
    assert "images (batch, 3, height, width)" in printed
    assert "times (batch,) float32" in printed
    assert ("labels (batch,) int64: 0 to 2 for a class, 3 for none" in printed) == bool(classes)
    assert "sizes of 6 x 10, 12 x 28, 12 x 10" in printed
    network, form = cvattn.load(path), export.FORMATS[to]
    velocity = form.open(path.with_suffix(form.suffix), open_call(str(path)))
    labels = torch.tensor([2, 0, 3]) if classes else None

    noise = draw_noise(3, (3, 14, 22), seed=5)

    def made(velocity, noise):
        return generate(velocity, noise, labels, steps=3)

    called = velocity if classes else lambda images, times, _: velocity(images, times)
    assert_accurate(made(called, noise), made, network, noise)


@pytest.mark.slow
def test_a_vit_as_onnx(vit_7x13, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -e '.[export]'")
    path, network = vit_7x13
    target = tmp_path / "vit.onnx"
    assert main(["export", str(path), "--to", "onnx", "-o", str(target)]) == 0
    session = onnxruntime.InferenceSession(target)
    assert session.get_inputs()[0].shape == ["batch", 1, 7, 13]
    images = images_of(3, 7, 13, channels=1)
    (got,) = session.run(None, {"images": images.numpy()})
    assert_accurate(torch.from_numpy(got), call, network, images)


def test_a_file_that_gives_other_logits_is_not_kept(vit_7x13, tmp_path, capsys, monkeypatch):
    path, _ = vit_7x13
    target = tmp_path / "vit.pt2"
    target.write_text("of another day")
    form = export.FORMATS["torchexport"]

    def open_wrongly(*file):
        logits = form.open(*file)
        return lambda images: logits(images) + 2e-3 * (len(images) == 5)

    monkeypatch.setitem(export.FORMATS, "torchexport", form._replace(open=open_wrongly))
    command = ["export", str(path), "--to", "torchexport", "-o", str(target), "--fixed-size"]
    assert main(command) == 1
    assert "other logits than the network: off by" in capsys.readouterr().err
    assert target.read_text() == "of another day"
    assert [each.name for each in tmp_path.iterdir()] == ["vit.pt2"]


def test_the_file_is_compared_with_the_network_itself(sagan, tmp_path, capsys, monkeypatch):
    """Not with the copy that was written: a fault in making that copy has to show."""
    path, _ = sagan
    target, make = tmp_path / "n.pt2", export._plain

    def wrongly(network):
        plain = make(network)
        plain.head.bias.data += 0.01
        return plain

    monkeypatch.setattr(export, "_plain", wrongly)
    command = ["export", str(path), "--to", "torchexport", "-o", str(target), "--fixed-size"]
    assert main(command) == 1
    assert "other logits than the network: off by" in capsys.readouterr().err
    assert not target.exists()


def test_what_cannot_be_exported_is_said(sagan, tmp_path, capsys, monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("data-dependent\nand a page more")

    monkeypatch.setattr(torch.export, "export", fails)
    path = [str(sagan[0]), "--to", "torchexport", "-o", str(tmp_path / "a.pt2")]
    assert main(["export", *path]) == 1
    error = capsys.readouterr().err
    assert error == (
        "error: this network cannot be exported to torchexport: data-dependent; --fixed-size may "
        "help\n"
    )
    assert main(["export", *path, "--fixed-size"]) == 1
    assert "--fixed-size" not in capsys.readouterr().err


WRONG = {
    "no format": ([], "required: --to"),
    "another format": (["--to", "onxx"], "invalid choice: 'onxx' .*onnx"),
    "suffix": (["--to", "onnx", "-o", "a.pt"], r"-o a\.pt: expected a file name .* in \.onnx"),
    "folder": (["--to", "torchexport", "-o", "gone/a.pt2"], "there is no folder gone"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments(sagan, capsys, arguments, message, monkeypatch):
    monkeypatch.setattr(export, "version", lambda package: "1.0")
    assert main(["export", str(sagan[0]), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search("^error: .*" + message, captured.err)


def test_the_packages_that_onnx_needs(sagan, capsys, monkeypatch):
    def version(package):
        if package == "onnxruntime":
            raise export.PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(export, "version", version)
    assert main(["export", str(sagan[0]), "--to", "onnx"]) == 2
    error = "error: --to onnx needs onnxruntime: pip install -e '.[export]'\n"
    assert capsys.readouterr().err == error

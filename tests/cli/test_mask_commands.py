"""The commands with networks that name every pixel, against the network called by hand."""

import csv
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mask_folders import draw_masks
from PIL import Image

import cvattn
from cvattn import checkpoint
from cvattn.cli import main
from cvattn.models import SegmentationNetwork, UNet

MEAN, STD = [0.35, 0.36, 0.34], [0.2, 0.21, 0.22]
NETWORK = {"num_classes": 2, "encoder": "test_resnet", "image_size": [16, 20], "width": 12}
UNET = {"in_channels": 3, "out_channels": 2, "image_size": [16, 20], "timed": False, "width": 6}
UNET |= {"multipliers": [1, 2], "attention_at": [1], "patch_size": 2}
KINDS = {"segmenter": (SegmentationNetwork, NETWORK), "unet": (UNet, UNET)}


@pytest.fixture(params=KINDS)
def trained(request, tmp_path):
    """A checkpoint whose network says both classes, and the folder that it is said to be of."""
    cls, args = KINDS[request.param]
    torch.manual_seed(11)
    root = draw_masks(tmp_path / "data")
    network = cls(**args)
    images = torch.randn(7, 3, 16, 20)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for _ in range(20):
            network(images)
        logits = network.eval()(images)
        bias = network.head.bias
        bias -= logits.mean((0, 2, 3)).repeat_interleave(len(bias) // 2)
    data = {"_target_": "cvattn.data.MasksFolderData", "root": str(root), "image_size": [16, 20]}
    meta = {"classes": ["no", "[b]yes"], "mean": MEAN, "std": STD, "image_size": [16, 20]}
    meta |= {"channels": 3, "mask_values": [0, 255], "mask_void": None, "config": {"data": data}}
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    checkpoint.save(path, network, args=args, meta=meta)
    return path, network, root


def by_hand(network, pixels, size):
    """uint8 (H, W, 3) -> likeliest classes of a network that sees it at ``size``, at its own."""
    picture = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC)
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    down, right = (-side % 4 for side in size)
    if isinstance(network, UNet):
        x = F.pad(x, (0, right, 0, down), mode="replicate")
    with torch.no_grad():
        logits = network(x)[..., : size[0], : size[1]]
    return F.interpolate(logits, pixels.shape[:2], mode="bilinear").argmax(1)[0].numpy()


@pytest.mark.parametrize(
    ("size", "shown"),
    [((16, 20), (16, 20)), ((32, 41), (16, 20)), ((48, 30), (32, 20)), ((9, 40), (16, 71))],
)
def test_predict_writes_masks_of_the_images_own_size(trained, tmp_path, capsys, size, shown):
    path, network, _ = trained
    pixels = np.random.default_rng(5).integers(0, 256, (*size, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "a b.png")
    folder = tmp_path / "out"
    given = [str(path), str(tmp_path / "in"), "-o", str(folder), "--overlays"]
    assert main(["predict", *given]) == 0
    with Image.open(folder / "a b.png") as mask:
        assert mask.mode == "P"
        values = np.array(mask)
        assert mask.convert("RGB").getpixel((0, 0)) in {(0, 0, 0), (224, 224, 192)}
    want = by_hand(network, pixels, shown)
    # A pixel between two classes may go either way: sums come in another order.
    assert ((values == 255) == want).mean() > 0.99
    assert set(np.unique(values)) == {0, 255}
    overlay = np.array(Image.open(folder / "overlays" / "a b.png")).astype(int)
    colours = np.array(Image.open(folder / "a b.png").convert("RGB")).astype(int)
    assert np.array_equal(overlay, (pixels.astype(int) + colours) // 2)
    share = f"{(values == 255).mean():.1%}"
    assert f"[b]yes {share}" in capsys.readouterr().out


def test_predict_says_what_it_does_not_do(trained, sagan, tmp_path, capsys):
    path, _, root = trained
    image = root / "test/images/00.jpg"
    assert main(["predict", str(path), str(image)]) == 0  # beside the checkpoints
    assert (path.parent.parent / "masks" / "00.png").is_file()
    capsys.readouterr()
    for given, said in (
        ([str(image), str(root / "train/images/00.jpg")], "would have one mask"),
        (
            [str(root / "test/masks/00.png"), "-o", str(root / "test/masks")],
            "an image that was giv",
        ),
    ):
        assert main(["predict", str(path), *given]) == 2
        assert said in capsys.readouterr().err
    (tmp_path / "words.png").write_text("words")
    assert main(["predict", str(path), str(tmp_path / "words.png"), str(image)]) == 1
    assert "words.png: not an image" in capsys.readouterr().err
    assert main(["predict", str(sagan[0]), str(image), "-o", "x"]) == 2
    assert "-o and --overlays are for networks that name every pixel" in capsys.readouterr().err


def test_evaluate_gives_the_iou_of_each_class(trained, tmp_path, capsys):
    path, _, root = trained
    assert main(["evaluate", str(path), "-o", str(tmp_path / "e")]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    # By the masks that the data gives and a fresh network.
    data = cvattn.data.MasksFolderData(root=root, image_size=[16, 20], mean=MEAN, std=STD)
    network = cvattn.load(path)
    truth, said = [], []
    for images, masks in data.test_dataloader():
        with torch.no_grad():
            said.append(network(images).argmax(1).numpy())
        truth.append(masks.numpy())
    truth, said = np.concatenate(truth), np.concatenate(said)
    iou = [((truth == c) & (said == c)).sum() / ((truth == c) | (said == c)).sum() for c in (0, 1)]
    assert found["class_iou"] == pytest.approx(iou)
    assert min(iou) > 0
    assert found["mean_iou"] == pytest.approx(np.mean(iou))
    assert found["pixel_accuracy"] == pytest.approx((truth == said).mean())
    assert found["pixels"] == truth.size
    rows = list(csv.reader((tmp_path / "e" / "confusion.csv").read_text().splitlines()))
    assert int(rows[1][1]) == ((truth == 0) & (said == 0)).sum()
    for text in ("[b]yes", f"{iou[1]:.2%}", f"{np.mean(iou):.2%}", "IoU"):
        assert text in printed


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--views", "flip"], "--views is for networks that name whole images"),
        (["data=digits"], "gives a mask for each image, and digits has a class"),
        (["data=digit_scenes"], "a scene needs 48 x 80 pixels"),
        (["data.root=nowhere"], "nowhere is not a folder; expected train/images"),
    ],
)
def test_evaluate_refuses_other_data(trained, capsys, given, said):
    assert main(["evaluate", str(trained[0]), *given]) == 2
    assert said in capsys.readouterr().err


def test_a_classifier_is_not_evaluated_on_masks(sagan, capsys):
    assert main(["evaluate", str(sagan[0]), "data=digit_scenes"]) == 2
    assert "gives a class for each image, and digit_scenes has a mask" in capsys.readouterr().err


def test_explore_shows_where_pixels_look(trained, tmp_path, capsys):
    path, _, root = trained
    page = tmp_path / "page.html"
    assert main(["explore", str(path), str(root / "test/images/00.jpg"), "-o", str(page)]) == 0
    assert main(["explore", str(path), "--count", "1", "-o", str(page)]) == 0
    assert "1 images, " in capsys.readouterr().out
    assert page.stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.10
@pytest.mark.parametrize("kind", ["torchexport", "onnx"])
def test_exported_files_give_the_same_masks(trained, tmp_path, capsys, kind):
    path, network, _ = trained
    suffix = {"torchexport": "pt2", "onnx": "onnx"}[kind]
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    target = tmp_path / f"s.{suffix}"
    assert main(["export", str(path), "--to", kind, "-o", str(target)]) == 0
    assert "logits (batch, 2, height, width)" in capsys.readouterr().out
    size = (16, 20) if isinstance(network, UNet) else (19, 37)
    images = torch.randn(3, 3, *size)
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        described = session.get_modelmeta().custom_metadata_map["mask_values"]
        assert json.loads(described) == [0, 255]
        found = torch.from_numpy(logits)
    else:
        found = torch.export.load(target).module()(images)
    with torch.no_grad():
        want = network(images)
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-4)
    assert (found.argmax(1) == want.argmax(1)).float().mean() > 0.999


def test_what_is_for_other_networks_is_refused(trained, capsys):
    path = trained[0]
    for command in (["sample", str(path)], ["judge", str(path), "--classifier", str(path)]):
        assert main(command) == 2
        assert "makes no images" in capsys.readouterr().err


@pytest.mark.parametrize("values", [[0], [0, 300], "01", [0, 0]])
def test_a_description_that_is_not_of_masks(trained, capsys, values):
    path, network, _ = trained
    meta = {**checkpoint.read(path)["cvattn"]["meta"], "mask_values": values}
    kind = "unet" if isinstance(network, UNet) else "segmenter"
    checkpoint.save(path, network, args=KINDS[kind][1], meta=meta)
    assert main(["predict", str(path), "a.png"]) == 2
    assert "expected one of 0 to 255 for each" in capsys.readouterr().err

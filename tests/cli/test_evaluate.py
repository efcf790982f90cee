"""``cvattn evaluate``: numbers against scikit-learn and numpy, files, choice of data."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics
from small_networks import DIGITS, MEAN, SAGAN, STD, VIT, folder_meta, write

from cvattn import SAGANClassifier, VisionTransformer, checkpoint
from cvattn.cli import main
from cvattn.cli.figures import draw_confusion, draw_reliability
from cvattn.cli.measures import measure
from cvattn.data import DigitsData


@pytest.fixture(scope="module")
def digits():
    """(probabilities of a network, labels) by hand on a split of the digits."""
    data = DigitsData()

    def compute(network, split):
        part = data.split(split)
        images = (part.images.double() / 255 - MEAN) / STD
        with torch.no_grad():
            logits = network(images.float()).double()
        return logits.softmax(-1).numpy(), part.labels.numpy()

    return compute


def calibration_error(probabilities, labels, bins=15):
    """One image after the other into its bin."""
    total = 0.0
    sums = np.zeros((bins, 3))
    for row, label in zip(probabilities, labels, strict=True):
        place = min(int(row.max() * bins), bins - 1)
        sums[place] += (1, row.max(), row.argmax() == label)
    for count, confidence, right in sums:
        total += abs(confidence - right) / len(labels) if count else 0
    return total


def test_views_are_averaged_and_named(sagan, digits, tmp_path, capsys):
    path, network = sagan
    assert main(["evaluate", str(path), "--views", "flip", "-o", str(tmp_path / "out")]) == 0
    assert "digits, test, views flip" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["views"] == "flip"
    right = total = 0
    with torch.no_grad():
        for images, labels in DigitsData().test_dataloader():
            logits = network(images) + network(images.flip(3))
            right += int((logits.argmax(-1) == labels).sum())
            total += len(labels)
    assert found["accuracy"] == pytest.approx(right / total)
    probabilities, truth = digits(network, "test")
    assert found["accuracy"] != metrics.accuracy_score(truth, probabilities.argmax(1))


@pytest.mark.parametrize("split", ["test", "val"])
def test_numbers_are_those_of_scikit_learn(sagan, digits, tmp_path, capsys, split):
    path, network = sagan
    assert main(["evaluate", str(path), "--split", split, "-o", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    probabilities, labels = digits(network, split)
    guesses = probabilities.argmax(1)
    assert len(set(guesses)) > 2  # a network with one answer for all would test little
    assert found["images"] == len(labels) == {"test": 360, "val": 180}[split]
    assert found["data"]["name"] == "digits"
    assert found["data"]["split"] == split
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, guesses), abs=1e-12)
    recall = metrics.recall_score(labels, guesses, average=None)
    assert found["class_accuracy"] == pytest.approx(recall.tolist(), abs=1e-12)
    assert found["cross_entropy"] == pytest.approx(
        metrics.log_loss(labels, probabilities), abs=1e-5
    )
    expected = calibration_error(probabilities, labels)
    assert expected > 0.02
    assert found["calibration_error"] == pytest.approx(expected, abs=1e-6)
    from_bins = sum(
        b["count"] * abs(b["accuracy"] - b["confidence"]) for b in found["bins"] if b["count"]
    )
    assert from_bins / len(labels) == pytest.approx(expected, abs=1e-6)
    assert sum(b["count"] for b in found["bins"]) == len(labels)

    with (tmp_path / "out" / "confusion.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["is \\ taken for", *"0123456789"]
    assert [row[0] for row in rows] == list("0123456789")
    confusion = metrics.confusion_matrix(labels, guesses)
    assert [[int(n) for n in row[1:]] for row in rows] == confusion.tolist()
    out = capsys.readouterr().out
    assert f"{found['accuracy']:.2%}" in out
    assert f"{recall[3]:.2%}" in out
    for name in ("confusion.png", "reliability.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 400
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 30


def test_the_files_go_into_the_folder_of_the_run(sagan, capsys):
    path, _ = sagan
    assert (
        main(["evaluate", str(path), "data=digits", "--split=test", "data.eval_batch_size=53"]) == 0
    )
    made = path.parent.parent / "evaluation"
    names = {"evaluation.json", "confusion.png", "confusion.csv", "reliability.png"}
    assert {file.name for file in made.iterdir()} == names
    assert str(made) in capsys.readouterr().out.replace("\n", "")


def test_measures_at_the_edges():
    """Sure and right, sure and wrong, a class without images, an output that is no class."""
    logits = torch.tensor([[50.0, 0, 0, 0], [0, 50.0, 0, 0], [50.0, 0, 0, 0]])
    found = measure(logits, torch.tensor([0, 1, 1]))
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.class_accuracy == [1.0, 0.5, None, None]
    assert found.confusion == [[1, 0, 0, 0], [1, 1, 0, 0], [0] * 4, [0] * 4]
    assert found.calibration_error == pytest.approx(1 / 3)
    assert found.bins[-1].count == 3
    assert found.bins[0].accuracy is None


def test_names_of_any_script_and_length_are_drawn(tmp_path):
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(3))
    found = measure(logits, torch.arange(50) % 4)
    names = ["猫", "$a$ and $b", "a name that is much too long for an axis", "_x^{"]
    draw_confusion(found, names, tmp_path / "c.png", title="$x_{")
    draw_reliability(found, tmp_path / "r.png", title="犬")
    assert (tmp_path / "c.png").exists()
    assert (tmp_path / "r.png").exists()


@pytest.fixture(scope="module")
def cats_and_dogs(tmp_path_factory):
    root = tmp_path_factory.mktemp("pets")
    rng = np.random.default_rng(13)
    for part, count in (("train", 3), ("test", 5)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "pets.ckpt"
    args = {**SAGAN, "num_classes": 2, "image_size": [12, 20]}
    return path, write(path, SAGANClassifier, args, folder_meta((12, 20)))


def test_a_folder_is_normalised_as_in_training(pets, cats_and_dogs, tmp_path, monkeypatch, capsys):
    """Not with the statistics of the folder; its size is the network's without being said."""
    path, network = pets
    monkeypatch.setenv("CVATTN_DATA", str(cats_and_dogs))
    assert main(["evaluate", str(path), "-o", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "gone is no folder here" in said.err
    found = json.loads((tmp_path / "evaluation.json").read_text())
    loss = []
    for label, name in enumerate(("cat", "dog")):
        for file in (cats_and_dogs / "test" / name).iterdir():
            with Image.open(file) as image:
                pixels = np.asarray(image).transpose(2, 0, 1)
            x = (torch.tensor(pixels / 255.0) - 0.45) / 0.22
            with torch.no_grad():
                logits = network(x[None].float()).double()
            loss.append(-float(logits.log_softmax(-1)[0, label]))
    assert found["images"] == len(loss) == 10
    assert found["cross_entropy"] == pytest.approx(np.mean(loss), abs=1e-5)
    monkeypatch.delenv("CVATTN_DATA")
    # The same from a checkpoint that tells no data: the size of the images is still the network's.
    args = {**SAGAN, "num_classes": 2, "image_size": [12, 20]}
    bare = tmp_path / "bare.ckpt"
    checkpoint.save(bare, network, args=args, meta={**folder_meta((12, 20)), "config": {}})
    settings = ["data=folder", f"data.root={cats_and_dogs}"]
    assert main(["evaluate", str(bare), *settings, "-o", str(tmp_path / "b")]) == 0
    again = json.loads((tmp_path / "b" / "evaluation.json").read_text())
    assert again["cross_entropy"] == found["cross_entropy"]


def test_skipped_files_are_told(pets, cats_and_dogs, tmp_path, capsys):
    root = tmp_path / "pets"
    root.mkdir()
    (root / "train").symlink_to(cats_and_dogs / "train")
    for name in ("cat", "dog"):
        (root / "test" / name).mkdir(parents=True)
        Image.new("RGB", (20, 12), "teal").save(root / "test" / name / "0.png")
    (root / "test" / "cat" / "bad.png").write_bytes(b"no image")
    settings = [str(pets[0]), f"data.root={root}", "-o", str(tmp_path / "out")]
    assert main(["evaluate", *settings]) == 2
    assert "bad.png" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="bad.png"):
        assert main(["evaluate", *settings, "data.on_corrupt=skip"]) == 0
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["data"]["skipped"] == 1
    assert found["images"] == 2


def test_the_jpeg_copy_is_called_by_its_name(sagan, tmp_path, monkeypatch, capsys):
    read = DigitsData._read

    def copy(self):
        sets, info = read(self)
        return sets, dataclasses.replace(info, official_pixels=False)

    monkeypatch.setattr(DigitsData, "_read", copy)
    assert main(["evaluate", str(sagan[0]), "-o", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "digits (JPEG copy)" in out
    assert "not the official ones" in out
    assert (
        json.loads((tmp_path / "evaluation.json").read_text())["data"]["official_pixels"] is False
    )


BAD_SETTINGS = [
    (["data=digit"], "data=digit: no such data; did you mean digits?"),
    (["data=auto"], "there are: cifar10, cifar100, digit_scenes, digits, fashion_mnist"),
    (
        ["dta=digits"],
        "cannot read 'dta=digits'; expected data=cifar10|cifar100|digit_scenes|digits|",
    ),
    (["data.rotatoin=3"], "data=digits has no 'rotatoin'; did you mean rotation?"),
    (["data.rotation=much"], "rotation must be a number, got 'much'"),
    (["data.seed=1.5"], "seed must be a whole number"),
    (["data.seed=[1"], "data.seed=[1 cannot be read as a YAML value"),
    (["data=folder", "data.mean=[1, 2, 3]"], "normalised as in training"),
    (["data=folder"], "data=folder needs data.root=FOLDER"),
    (["data=folder", "data.root=nowhere"], "nowhere is not a folder"),
    (["data=cifar10"], "classes are not the network's: it knows 0, 1, 2"),
    (["--split", "train"], "invalid choice: 'train'"),
    (["--splt", "val"], "unknown option '--splt'; did you mean --split?"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS)
def test_bad_settings_are_one_line(sagan, tmp_path, monkeypatch, capsys, settings, message):
    monkeypatch.delenv("CVATTN_DATA", raising=False)
    monkeypatch.setenv("CVATTN_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(sagan[0]), *settings, "-o", "out"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "out").exists()


def test_data_of_another_kind_is_refused(cats_and_dogs, tmp_path, capsys):
    def attempt(args, meta, *settings):
        write(tmp_path / "n.ckpt", VisionTransformer, {**VIT, **args}, {**DIGITS, **meta})
        assert main(["evaluate", str(tmp_path / "n.ckpt"), *settings]) == 2
        return capsys.readouterr().err

    grey = {"channels": 1, "mean": [0.3], "std": [0.3]}
    assert "takes 1 channels, digits has 3" in attempt({"in_channels": 1}, grey)
    sizes = attempt({"image_size": [16, 24]}, {"image_size": [16, 24]})
    assert "images of 16 x 24 (height x width), digits has 32 x 32" in sizes
    order = attempt({}, {"classes": list("9876543210")})
    assert "in another order: it knows 9, 8, 7" in order
    unknown = attempt({}, {"config": {"data": {"_target_": "os.system", "command": "false"}}})
    assert "trained on os.system, which is no data of cvattn; name the data" in unknown
    assert "does not say what data" in attempt({}, {"config": {}})
    root = [f"data.root={cats_and_dogs}", "data.image_size=[16, 16]"]
    assert "folder has 16 x 16" in attempt({}, {}, "data=folder", *root)


def test_numbers_that_are_none(tmp_path, capsys):
    network = write(tmp_path / "n.ckpt", VisionTransformer, VIT, DIGITS)
    with torch.no_grad():
        network.head.bias[3] = float("nan")
    checkpoint.save(tmp_path / "n.ckpt", network, args=VIT, meta=DIGITS)
    assert main(["evaluate", str(tmp_path / "n.ckpt")]) == 1
    assert "not finite for 360 images" in capsys.readouterr().err
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    assert main(["predict", str(tmp_path / "n.ckpt"), str(tmp_path / "a.png")]) == 1
    assert "not finite" in capsys.readouterr().err


def test_an_output_folder_that_cannot_be(sagan, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["evaluate", str(sagan[0]), "-o", str(tmp_path / "file")]) == 2
    assert "cannot write into" in capsys.readouterr().err


def test_cifar10_says_whose_pixels(cifar10_root, tmp_path, capsys):
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    meta = {**DIGITS, "classes": names.split(), "config": {}}
    write(tmp_path / "n.ckpt", VisionTransformer, VIT, meta)
    settings = ["data=cifar10", f"data.root={cifar10_root}"]
    assert main(["evaluate", str(tmp_path / "n.ckpt"), *settings]) == 0
    found = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert found["images"] == 10_000
    copy = found["data"]["official_pixels"] is False
    assert ("JPEG copy" in capsys.readouterr().out) == copy

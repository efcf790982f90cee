"""``cvattn predict``: against the network called by hand on pixels that the test made itself."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_networks import SAGAN, folder_meta, write

from cvattn import SAGANClassifier
from cvattn.cli import main
from cvattn.data.image_files import ImageError, cut, read_picture
from cvattn.inference.images import read_image


def by_hand(network, pixels, mean, std):
    """uint8 (H, W, 3) or (H, W) -> probabilities."""
    x = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    x = (torch.tensor(x.astype(np.float64) / 255) - mean) / std
    with torch.no_grad():
        return network(x[None].float()).softmax(-1)[0].tolist()


def answers(text):
    """{file: {class: probability}} of the plain output."""
    found = {}
    for line in text.splitlines():
        name, *rest = re.split(r" {2,}", line.strip())
        guesses = re.findall(r"(\S.*?) +([\d.]+)%", "  ".join(rest))
        found[Path(name).name] = {c.strip(): float(p) / 100 for c, p in guesses}
    return found


@pytest.fixture
def photo():
    return np.random.default_rng(11).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def test_every_kind_of_file_gets_the_probabilities_of_its_pixels(sagan, photo, tmp_path, capsys):
    path, network = sagan
    grey = photo[..., 0]
    alpha = np.random.default_rng(3).integers(0, 2, (32, 32), dtype=np.uint8) * 255
    see_through = np.dstack([photo, alpha])
    on_white = np.where(alpha[..., None] == 255, photo, 255).astype(np.uint8)
    palette = Image.fromarray(photo).quantize(17)
    upright = Image.fromarray(np.rot90(photo).copy())  # stored turned, with the tag to turn it back
    exif = Image.Exif()
    exif[0x0112] = 6
    want = {}
    for name, image, pixels in (
        ("rgb.png", Image.fromarray(photo), photo),
        ("grey.png", Image.fromarray(grey), np.dstack([grey] * 3)),
        ("alpha.png", Image.fromarray(see_through), on_white),
        ("palette.png", palette, np.asarray(palette.convert("RGB"))),
        ("deep.png", Image.fromarray(grey.astype(np.uint16) * 257), np.dstack([grey] * 3)),
        ("one bit.png", Image.fromarray(grey > 99), np.dstack([np.uint8(grey > 99) * 255] * 3)),
    ):
        image.save(tmp_path / name)
        want[name] = by_hand(network, pixels, 0.3045637, 0.3233967)
    upright.save(tmp_path / "turned.png", exif=exif)
    want["turned.png"] = want["rgb.png"]

    assert main(["predict", str(path), str(tmp_path), "--top", "10"]) == 0
    found = answers(capsys.readouterr().out)
    assert found.keys() == want.keys()
    for name, probabilities in want.items():
        for digit, probability in enumerate(probabilities):
            assert found[name][str(digit)] == pytest.approx(probability, abs=6e-5), name
        assert list(found[name].values()) == sorted(found[name].values(), reverse=True)
    # Two pairs hold the same pixels; else the answers differ, so a network that ignores them fails.
    assert len({tuple(np.round(p, 3)) for p in want.values()}) == len(want) - 2


def test_a_grey_network_of_odd_shape_and_outputs_without_a_class(vit_7x13, tmp_path, capsys):
    path, network = vit_7x13
    pixels = np.random.default_rng(7).integers(0, 256, (7, 13), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert main(["predict", "--top", "99", str(path), str(tmp_path / "x.png")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    names = ["a cat", "dog", "[b]eel", "output 3"]
    want = dict(zip(names, by_hand(network, pixels, 0.4, 0.25), strict=True))
    assert answers(out)["x.png"] == pytest.approx(want, abs=6e-5)


def test_another_shape_is_squeezed_whole_and_said(vit_7x13, tmp_path, capsys):
    path, network = vit_7x13
    big = np.random.default_rng(5).integers(0, 256, (70, 130), dtype=np.uint8)
    Image.fromarray(big).save(tmp_path / "same shape.png")
    Image.fromarray(big[:50]).save(tmp_path / "wide.png")
    assert main(["predict", str(path), str(tmp_path), "--top=4"]) == 0
    out, err = capsys.readouterr()
    assert "wide.png (130 x 50)" in err
    assert "13 x 7" in err
    assert "same shape" not in err
    # Independent of Pillow: torch's own anti-aliased bilinear filter, to within a rounded pixel.
    small = torch.nn.functional.interpolate(
        torch.tensor(big).float()[None, None], size=(7, 13), mode="bilinear", antialias=True
    )[0, 0]
    pixels, size = read_image(tmp_path / "same shape.png", 1, (7, 13))
    assert size == (70, 130)
    assert np.abs(pixels[0] - small.numpy()).max() <= 1.01
    want = by_hand(network, pixels[0], 0.4, 0.25)
    assert answers(out)["same shape.png"]["a cat"] == pytest.approx(want[0], abs=6e-5)


def test_bad_files_are_named_and_the_others_predicted(sagan, photo, tmp_path, capsys):
    path, _ = sagan
    Image.fromarray(photo).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:200])
    (tmp_path / "words.jpg").write_text("no image")
    (tmp_path / "empty").mkdir()
    Image.fromarray(photo[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    files = [tmp_path / name for name in ("cut.png", "empty", "words.jpg", "no.png", "good.png")]
    assert main(["predict", str(path), *map(str, files), str(tmp_path / "float.tif")]) == 1
    out, err = capsys.readouterr()
    assert list(answers(out)) == ["good.png"]
    lines = err.splitlines()
    assert len(lines) == 5
    for line, (name, why) in zip(
        lines,
        [
            ("cut.png", "truncated"),
            ("empty", "a folder without image files"),
            ("words.jpg", "not an image"),
            ("no.png", "no such file"),
            ("float.tif", "no fixed range"),
        ],
        strict=True,
    ):
        assert line.startswith("error: ")
        assert name in line
        assert why in line


def test_many_files_keep_their_answers(sagan, tmp_path, capsys):
    path, network = sagan
    rng = np.random.default_rng(2)
    want = {}
    for index in range(67):  # one more than a batch, and two
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        want[f"{index}.png"] = max(by_hand(network, pixels, 0.3045637, 0.3233967))
    assert main(["predict", str(path), str(tmp_path), "--top", "1"]) == 0
    found = {k: max(v.values()) for k, v in answers(capsys.readouterr().out).items()}
    assert found == pytest.approx(want, abs=6e-5)


def test_networks_of_image_folders_see_what_they_saw_in_training(tmp_path, capsys):
    args = {**SAGAN, "num_classes": 2, "image_size": [12, 20]}
    network = write(tmp_path / "f.ckpt", SAGANClassifier, args, folder_meta((12, 20)))
    photo = np.random.default_rng(5).integers(0, 256, (90, 40, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "tall.png")
    pixels = cut(read_picture(tmp_path / "tall.png", 3), (12, 20))
    gone = str(tmp_path / "gone.png")
    assert main(["predict", str(tmp_path / "f.ckpt"), str(tmp_path / "tall.png"), gone]) == 1
    out, err = capsys.readouterr()
    assert err == f"error: {gone}: no such file\n"
    want = by_hand(network, pixels.transpose(1, 2, 0), 0.45, 0.22)
    assert answers(out)["tall.png"]["cat"] == pytest.approx(want[0], abs=6e-5)


def test_a_terminal_gets_a_table_with_names_as_they_are(vit_7x13, tmp_path, capsys, monkeypatch):
    Image.new("L", (13, 7), 90).save(tmp_path / "[red].png")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["predict", str(vit_7x13[0]), str(tmp_path), "--top", "4"]) == 0
    out = capsys.readouterr().out
    assert "[red].png" in out
    assert "[b]eel" in out


def test_pixels_of_32_bits_have_no_fixed_range(tmp_path):
    deep = np.arange(256, dtype=np.int32).reshape(16, 16)
    for name, factor in {"dark": 1, "as of 16 bits": 256, "beyond": 512}.items():
        Image.fromarray(deep * factor).save(tmp_path / f"{name}.tif")
        with pytest.raises(ImageError, match="32-bit"):
            read_image(tmp_path / f"{name}.tif", 1, (16, 16))


@pytest.mark.slow
def test_as_a_program(sagan, photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "a.png")
    done = subprocess.run(
        [sys.executable, "-m", "cvattn", "predict", str(sagan[0]), "a.png", "b.png"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr == "error: b.png: no such file\n"
    assert list(answers(done.stdout)) == ["a.png"]

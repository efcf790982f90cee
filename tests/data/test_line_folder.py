"""A user's folder of lines: what is read, and what is said of a folder that cannot be."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from line_images import draw, write_lines, write_part
from omegaconf import OmegaConf
from PIL import Image

from cvattn.data import DataError, LineFolderData
from cvattn.data.image_files import ImageError
from cvattn.data.sequences.line_files import read_line


@pytest.fixture
def root(tmp_path):
    return write_lines(tmp_path)


def make(root, **options) -> LineFolderData:
    return LineFolderData(root=root, height=16, batch_size=7, **options)


def test_facts_are_known_from_the_transcripts_alone(root):
    for path in root.glob("*/*.png"):
        path.write_bytes(b"")  # no pixels are read
    info = make(root).describe()
    assert "".join(info.alphabet) == "aé界"
    assert (info.train_size, info.val_size, info.test_size) == (20, 3, 5)
    assert info.max_length == 8  # six characters, END, and one more
    assert info.fills()["target_vocab"] == 6


def test_each_line_comes_with_its_text_and_width(root):
    data = make(root, shift=0)
    data.setup()
    info = data.describe()
    from cvattn.core import Alphabet

    alphabet = Alphabet(info.alphabet)
    seen = []
    for split in ("train", "val", "test"):
        count = getattr(info, f"{split}_size")
        (images, widths), targets = data.samples(split, torch.arange(count))
        for image, width, row in zip(images, widths.tolist(), targets.tolist(), strict=True):
            text = alphabet.decode(row)
            pixels = (image[0, :, :width] * info.std[0] + info.mean[0]) * 255
            want = np.pad(draw(text), ((1, 2), (0, 0)), mode="edge")
            assert np.array_equal(pixels.round().numpy().astype(np.uint8), want)
            seen.append(text)
    assert len(seen) == 28
    train = torch.cat([image.flatten() for image in data._images["train"]]) / 255
    assert info.mean[0] == pytest.approx(float(train.mean()), rel=1e-4)


def test_training_lines_move_and_others_do_not(root):
    data, still = make(root, shift=3), make(root, shift=0)
    for each in (data, still):
        each.setup()
    index = torch.arange(20)
    moved = [data.samples("train", index, epoch)[0][0] for epoch in (0, 0, 1)]
    assert torch.equal(moved[0], moved[1])
    assert not torch.equal(moved[0], moved[2])
    plain = still.samples("train", index)[0][0]
    for a, b in zip(moved[0], plain, strict=True):
        shifts = [b[:, (torch.arange(16) - by).clamp(0, 15)] for by in range(-3, 4)]
        assert any(torch.equal(a, shifted) for shifted in shifts)
    assert torch.equal(
        data.samples("val", torch.arange(3))[0][0], still.samples("val", torch.arange(3))[0][0]
    )


def test_batches_hold_lines_of_like_width(root):
    data = LineFolderData(root=root, height=16, batch_size=4)
    data.setup()
    spread = [
        int(data.lengths("train", index).max() - data.lengths("train", index).min())
        for index in data.train_dataloader().batch_indices()
    ]
    assert len(spread) == 5
    assert sum(spread) / len(spread) < 8  # of 20 at random


def test_the_alphabet_can_be_given(root):
    assert make(root, alphabet="xa界é").describe().alphabet == tuple("xa界é")
    with pytest.raises(
        DataError, match=r"01\.png: character 'é' \(U\+00E9\), number 1 .*'a界'\. Add"
    ):
        make(root, alphabet="a界").describe()
    with pytest.raises(ValueError, match="alphabet: 'a': each character"):
        make(root, alphabet="aa")


def test_composed_and_decomposed_text_is_one(root):
    path = root / "train" / "transcripts.txt"
    path.write_text(path.read_text("utf-8").replace("é", "e\u0301"), "utf-8")
    assert "".join(make(root).describe().alphabet) == "aé界"


def edit(root: Path, text: str) -> None:
    (root / "test" / "transcripts.txt").write_text(text, "utf-8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t0.png a\n", r"transcripts\.txt, line 1 has no tab: 't0\.png a'; expected NAME, a tab"),
        ("t0.png\ta\n\nt1.png\t \n", r"line 3: t1\.png has an empty transcript"),
        ("t0.png\ta\nt0.png\ta\n", r"line 2: t0\.png has a transcript already"),
        ("t9.png\ta\n", r"line 1: there is no image .*t9\.png"),
        ("\n", "has no transcripts"),
        (
            "../train/00.png\ta\n",
            r"line 1: \.\./train/00\.png is not in .*images lie in it or below",
        ),
        ("/etc/hostname\ta\n", "line 1: /etc/hostname is not in"),
        ("t0.png\taxa\n", r"t0\.png: character 'x' .*number 2 of 'axa'.*Add it to data\.alphabet"),
    ],
)
def test_transcripts_that_cannot_be_used(root, text, message):
    edit(root, text)
    with pytest.raises(DataError, match=message):
        make(root).describe()


def test_folders_that_cannot_be_used(root, tmp_path):
    with pytest.raises(DataError, match="nowhere is not a folder; expected one with train/ and te"):
        make(root / "nowhere").describe()
    (root / "train" / "transcripts.txt").unlink()
    with pytest.raises(DataError, match=r"transcripts\.txt is missing: .* there are: 00\.png"):
        make(root).describe()
    write_part(tmp_path / "one" / "train", {"a.png": "a"})
    write_part(tmp_path / "one" / "test", {"a.png": "a"})
    with pytest.raises(DataError, match="too few lines"):
        make(tmp_path / "one").describe()


def test_a_line_that_is_too_high_or_no_image_is_named(root):
    Image.fromarray(draw("a", 17)).save(root / "train" / "03.png")
    (root / "test" / "t1.png").write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        make(root).setup()
    text = str(caught.value)
    assert text.startswith("2 line images cannot be used:")
    assert "03.png: the line is 17 pixels high, lines may be at most 16; scale the image" in text
    assert "t1.png: not an image, or damaged at its beginning" in text


def test_files_of_every_kind_are_decoded(tmp_path):
    grey = draw("aé")
    turned = Image.Exif()
    turned[0x0112] = 6  # turned a quarter to the right, to be turned back
    kinds = {
        "grey.png": (Image.fromarray(grey), {}),
        "deep.png": (Image.fromarray(grey.astype(np.uint16) * 257), {}),
        "colour.png": (Image.fromarray(np.dstack([grey] * 3)), {}),
        "turned.png": (Image.fromarray(np.rot90(grey).copy()), {"exif": turned}),
    }
    for name, (image, options) in kinds.items():
        image.save(tmp_path / name, **options)
        assert np.array_equal(read_line(tmp_path / name, 13), grey), name
    alpha = np.dstack([grey, np.full_like(grey, 0)])
    Image.fromarray(alpha, "LA").save(tmp_path / "clear.png")
    assert (read_line(tmp_path / "clear.png", 13) == 255).all()
    with pytest.raises(ImageError, match=r"^no such file$"):
        read_line(tmp_path / "none.png", 13)
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ImageError, match="no fixed range"):
        read_line(tmp_path / "float.tif", 13)


def test_every_tunable_is_listed_and_can_be_built(tmp_path):
    root = OmegaConf.create({"seed": 3, "recipe": {"batch_size": 96}})
    conf = Path(__file__).parents[2] / "conf" / "data" / "line_folder.yaml"
    root.data = OmegaConf.load(conf)
    values = OmegaConf.to_container(root.data, resolve=True)
    assert values.pop("_target_") == "cvattn.data.LineFolderData"
    signature = inspect.signature(LineFolderData)
    assert set(values) == set(signature.parameters)
    for key, value in values.items():
        if key not in ("root", "batch_size", "seed"):
            assert value == signature.parameters[key].default, key

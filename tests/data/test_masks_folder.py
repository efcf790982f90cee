"""Folders of images and masks: what values mean, what lies where, and what is refused."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cvattn.data import VOID, DataError, MasksFolderData

SIZE = (13, 22)  # (H, W) of the files


def pixels(seed, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def values(seed, among, size=SIZE):
    """A mask in which each of the values is there."""
    mask = np.random.default_rng(seed).choice(among, size).astype(np.uint8)
    mask.flat[: len(among)] = among
    return mask


def save(root, name, mask, *, image=None, suffix=".png"):
    """``name`` is "train/images/a/1.png"; ``mask``, an array or a picture, goes beside it."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(len(name)) if image is None else image).save(path)
    beside = (root / name.replace("/images/", "/masks/")).with_suffix(suffix)
    beside.parent.mkdir(parents=True, exist_ok=True)
    (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(beside)
    return beside


def fill(root, among):
    for part, count in (("train", 7), ("test", 3)):
        for number in range(count):
            save(root, f"{part}/images/{'ab'[number % 2]}/{number}.png", values(number, among))
    return root


def palette(mask):
    """The same values with colours, as of Pascal VOC."""
    picture = Image.fromarray(mask)
    picture.putpalette([value * 7 % 256 for value in range(768)])
    assert picture.mode == "P"
    return picture


def make(root, **options):
    return MasksFolderData(**{"root": root, "image_size": SIZE, "batch_size": 2, **options})


def masks_of(data, split="test"):
    return data.split(split).labels


@pytest.mark.parametrize(
    ("among", "options", "meant", "names", "said"),
    [
        ((0, 1, 2), {}, (0, 1, 2), "0 1 2", "classes 0 to 2, as found"),
        ((0, 1, 2, 255), {}, (0, 1, 2), "0 1 2", "255 is void"),
        ((0, 255), {}, (0, 255), "0 255", "taken for two classes"),
        ((0, 255), {"classes": ["no", "yes"]}, (0, 255), "no yes", "if 255 is void: data.void=255"),
        ((0, 128, 255), {"values": [0, 128, 255]}, (0, 128, 255), "0 128 255", ""),
        ((0, 128, 255), {"values": [128, 0]}, (128, 0), "128 0", ""),
        ((0, 1, 7), {"void": 7}, (0, 1), "0 1", "7 is void"),
        ((0, 2), {"classes": ["a", "b", "c"]}, (0, 1, 2), "a b c", "train/ has no pixel of b"),
        ((1, 2), {"values": [1, 2], "void": 0}, (1, 2), "1 2", ""),
    ],
)
def test_what_the_values_mean(tmp_path, among, options, meant, names, said):
    data = make(fill(tmp_path, among), **options)
    before = data.describe()
    assert before.classes == tuple(names.split())
    assert before.values == meant
    data.setup()
    assert said in data.info.source
    want = np.stack([values(number, among) for number in (0, 2, 1)])  # a/0, a/2, b/1
    table = np.full(256, VOID)
    table[list(meant)] = range(len(meant))
    assert torch.equal(masks_of(data), torch.from_numpy(table[want]).to(torch.uint8))
    assert data.info.meta()["mask_values"] == list(meant)


@pytest.mark.parametrize("kind", ["palette", "rgb", "rgba", "one bit", "deep", "tiff", "bmp"])
def test_one_mask_in_every_form(tmp_path, kind):
    among = (0, 1) if kind == "one bit" else (0, 1, 2)
    root = fill(tmp_path, among)
    mask = values(1, among)
    grey = Image.fromarray(mask)
    picture = {
        "palette": palette(mask),
        "rgb": Image.merge("RGB", [grey] * 3),
        "rgba": Image.merge("RGBA", [grey] * 3 + [Image.new("L", grey.size, 255)]),
        "one bit": Image.fromarray(mask.astype(bool)),
        "deep": Image.fromarray(mask.astype(np.uint16)),
    }.get(kind, grey)
    suffix = {"tiff": ".tif", "bmp": ".bmp"}.get(kind, ".png")
    (root / "test/masks/b/1.png").unlink()
    save(root, "test/images/b/1.png", picture, suffix=suffix)
    assert torch.equal(masks_of(make(root))[2], torch.from_numpy(mask))


def test_masks_are_cut_as_their_images_and_never_mixed(tmp_path):
    """An image whose red is its mask's value stays its mask, whatever the sizes."""
    root = fill(tmp_path, (0, 1, 2))
    blocks = np.kron(values(3, (0, 1, 2), (5, 7)), np.ones((24, 24), np.uint8))
    image = np.stack([blocks * 100] * 3, -1)
    for number, (part, size) in enumerate(
        [(blocks, (40, 40)), (blocks, (31, 67)), (blocks[:, :72], (23, 17)), (blocks, (5, 7))]
    ):
        save(root, f"test/images/c/{number}.png", part, image=image[:, : part.shape[1]])
        data = make(root, image_size=size, crop_pad=0)
        chosen = data.split("test")
        assert chosen.labels.shape[1:] == size
        last = 3 + number
        red, mask = chosen.images[last, 0].double() / 100, chosen.labels[last]
        if size == (5, 7):
            assert torch.equal(mask, torch.from_numpy(blocks[12::24, 12::24]))
            continue
        # Bicubic scaling rings and blurs at borders, where there are few pixels.
        assert ((red - mask).abs() < 0.2).double().mean() > 0.75
        assert set(mask.unique().tolist()) <= {0, 1, 2}


def test_training_masks_move_with_their_images(tmp_path):
    root = tmp_path
    for part in ("train", "test"):
        for number in range(12):
            mask = values(number, tuple(range(7)))
            image = np.stack([mask * 30, mask, 255 - mask], -1).astype(np.uint8)
            save(root, f"{part}/images/{number}.png", mask, image=image)
    data = make(root, crop_pad=5, batch_size=5)
    original = {mask.numpy().tobytes() for mask in masks_of(data, "train")}
    info, seen, moved = data.info, 0, 0
    for epoch in range(3):
        loader = data.train_dataloader()
        for index in loader.batch_indices(epoch):
            images, masks = loader.batch(index, epoch)
            assert masks.dtype == torch.uint8
            red = (images[:, 1] * info.std[1] + info.mean[1]) * 255
            real = masks != VOID
            assert torch.equal(red.round()[real], masks[real].float())
            seen += len(masks)
            moved += sum(mask.numpy().tobytes() not in original for mask in masks)
            # What came in from outside is a border of whole rows and columns.
            for mask in real:
                assert torch.equal(mask, mask.any(1)[:, None] & mask.any(0)[None])
    assert moved > 0.8 * seen
    (images, masks), *_ = data.test_dataloader()
    assert torch.equal(masks, masks_of(data)[: len(masks)])
    assert VOID not in masks


def test_the_fingerprint_is_of_the_masks_too(tmp_path):
    root = fill(tmp_path, (0, 1, 2))
    first = make(root)
    first.setup()
    save(root, "test/images/a/0.png", values(77, (0, 1, 2)), image=None)
    second = make(root)
    second.setup()
    assert torch.equal(first.split("train").images, second.split("train").images)
    assert first.info.fingerprint != second.info.fingerprint
    assert dataclasses.replace(first.info, fingerprint="") == dataclasses.replace(
        second.info, fingerprint=""
    )


def remove(path):
    return lambda root: (root / path).unlink()


def swap(mask, name="test/images/b/1.png", **options):
    def change(root):
        (root / name.replace("images", "masks")).unlink()
        save(root, name, mask, **options)

    return change


def turned(root):
    """Stored on its side with the tag that turns it upright, its mask as it is stored."""
    path = root / "test/images/b/1.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)


COLOURS = Image.fromarray(pixels(5))
WRONG = [
    (remove("train/masks/a/2.png"), r"1 of 7 images of .*images have no mask in .*masks: a/2"),
    (
        swap(values(1, (0, 1, 2), (13, 21))),
        r"b/1\.png: 21 x 13 pixels, and its image 1\.png has 22 x",
    ),
    (turned, r"b/1\.png: 22 x 13 .* 13 x 22 once it is turned upright.*EXIF"),
    (
        swap(values(1, (0, 1, 9))),
        r"b/1\.png: values 9 mean nothing: the classes are 0, 1, 2, 255 for",
    ),
    (swap(COLOURS), r"b/1\.png: in colours \(RGB\).*palette PNG"),
    (swap(Image.merge("LA", [Image.new("L", (22, 13))] * 2)), r"transparent pixels have no value"),
    (swap(Image.fromarray(np.full(SIZE, 300, np.uint16))), r"values from 300 to 300"),
    (swap(values(1, (0, 1)), suffix=".webp"), r"b/1\.webp: a mask as WEBP has lost its values"),
    (lambda root: (root / "test/masks/b/1.png").write_bytes(b"words"), r"b/1\.png: not an image"),
    (
        lambda root: (root / "test/images/b/1.png").write_bytes(b"words"),
        r"its image 1\.png: not an",
    ),
    (
        lambda root: shutil.rmtree(root / "test/masks"),
        r"test/masks is missing; expected train/images",
    ),
    (
        lambda root: (root / "test").rename(root / "tests"),
        r"test is not a folder.*has tests, train",
    ),
    (
        lambda root: (root / "train/masks").rename(root / "train/SegmentationClass"),
        r"train/masks is missing.*can be linked; .*train has SegmentationClass, images",
    ),
    (
        lambda root: shutil.copy(root / "test/images/b/1.png", root / "test/images/b/1.bmp"),
        r"have one name",
    ),
]


@pytest.mark.parametrize(("change", "said"), WRONG)
def test_bad_files_are_named(tmp_path, change, said):
    root = fill(tmp_path, (0, 1, 2))
    change(root)
    with pytest.raises(DataError, match=said):
        make(root).setup()


def test_all_bad_files_are_named_at_once(tmp_path):
    root = fill(tmp_path, (0, 1, 2))
    for number in (1, 3):
        save(root, f"train/images/b/{number}.png", values(1, (0, 1, 2), (5, 7)))
    with pytest.raises(DataError, match=r"(?s)2 images with their masks.*b/1\.png.*b/3\.png"):
        make(root).setup()


@pytest.mark.parametrize(
    ("among", "options", "said"),
    [
        (
            (0, 128, 255),
            {},
            r"0, 128, 255, which are not 0, 1, 2.*values=\[0,128\] \(void is 255.*",
        ),
        ((0, 1, 3), {}, r"values=\[0,1,3\]"),
        (
            (0, 1, 3),
            {"classes": ["a", "b"]},
            r"not 0 to 1 for 2 classes.*and as many data\.classes",
        ),
        ((0,), {}, r"the value 0 alone .*one class only"),
        ((0, 255), {"void": 255}, r"the value 0 alone"),
        ((0,), {"classes": ["a", "b"]}, r"every pixel .* is 'a': there is one class only"),
        ((255,), {}, r"void throughout"),
        ((255,), {"classes": ["a", "b"]}, r"void throughout"),
        ((255,), {"values": [0, 1]}, r"train: no pixel of a mask has a class"),
        ((0, 1, 2), {"void": 1}, r"void=1 is one of the values 0 to 2"),
    ],
)
def test_values_that_are_not_clear(tmp_path, among, options, said):
    with pytest.raises(DataError, match=said):
        make(fill(tmp_path, among), **options).setup()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"classes": ["a"]}, "expected 2 or more names"),
        ({"classes": ["a", "b", "a"]}, "each once"),
        ({"values": [0]}, "expected 2 or more"),
        ({"values": [0, 256]}, "256 is no value"),
        ({"values": [0, 1], "void": 1}, "a class cannot be void"),
        ({"values": [0, 1], "classes": ["a", "b", "c"]}, "3 classes and 2 values"),
        ({"void": -1}, "-1 is no value"),
        ({"channels": 4}, "1 .grey. or 3"),
        ({"crop_pad": 13}, "must be smaller than the image"),
    ],
)
def test_arguments_that_cannot_be(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        make(tmp_path, **options)


def test_validation_is_by_names_or_a_folder_and_strays_are_said(tmp_path):
    root = fill(tmp_path, (0, 1, 2))
    (root / "train/masks/stray.png").write_bytes(b"")
    info = make(root).describe()
    assert (info.train_size, info.val_size, info.test_size) == (6, 1, 3)
    assert "1 masks without an image: stray" in info.source
    shutil.copytree(root / "test", root / "val")
    info = make(root).describe()
    assert (info.train_size, info.val_size, info.test_size) == (7, 3, 3)
    for number in range(1, 7):
        (root / f"train/images/{'ab'[number % 2]}/{number}.png").unlink()
    shutil.rmtree(root / "val")
    with pytest.raises(DataError, match="nothing to validate with"):
        make(root).describe()

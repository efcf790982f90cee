"""Folders of images: sizes, kinds, damage, and folders that do not fit together."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cvattn.data import DataError, FolderData
from cvattn.data.images.base import channel_statistics

COLOURS = {"blue": (10, 20, 200), "red": (200, 30, 40)}


def save(path, size, colour, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)


@pytest.fixture(params=["memory", "mapped", "stream"])
def hold(request):
    """How the pictures are held; what is wrong with a folder is told by each."""
    return request.param


@pytest.fixture
def root(tmp_path):
    """11 blue and 7 red training images of many sizes and kinds; 3 + 2 test images."""
    sizes = [(20, 30), (64, 17), (9, 9), (33, 40), (5, 80), (12, 12), (31, 7), (50, 50)]
    for part, counts in {"train": (11, 7), "test": (3, 2)}.items():
        for (name, colour), count in zip(COLOURS.items(), counts, strict=True):
            for i in range(count):
                suffix = (".png", ".jpg", ".bmp")[i % 3]
                save(tmp_path / part / name / f"{i:02}{suffix}", sizes[i % 8], colour)
    return tmp_path


def pixels(data, split):
    """All images of a split, whatever holds them."""
    return data.split(split).all_images()


def test_images_of_any_size_become_one(root, hold):
    data = FolderData(root=root, image_size=[12, 20], batch_size=4, hold=hold)
    before = data.describe()
    assert before.classes == ("blue", "red")
    assert before.image_size == (12, 20)
    assert (before.train_size, before.val_size, before.test_size) == (15, 3, 5)  # 2 of 11, 1 of 7
    assert before.mean == ()
    data.setup()
    assert (data.info.train_size, data.info.val_size, data.info.test_size) == (15, 3, 5)
    for split in ("train", "val", "test"):
        part = data.split(split)
        assert part.images.shape[1:] == (3, 12, 20)
        colours = torch.tensor(list(COLOURS.values()))[part.labels]
        assert (pixels(data, split).double().mean((2, 3)) - colours).abs().max() < 6  # JPEG
    values = pixels(data, "train").double() / 255
    np.testing.assert_allclose(data.info.mean, values.mean((0, 2, 3)), atol=1e-12)
    np.testing.assert_allclose(data.info.std, values.std((0, 2, 3), correction=0), atol=1e-12)
    batches = list(data.train_dataloader())
    assert [tuple(images.shape) for images, _ in batches] == [(4, 3, 12, 20)] * 3


def test_an_image_covers_the_target_and_is_cut_in_the_middle(root, hold):
    picture = np.zeros((8, 24, 3), np.uint8)
    picture[:, 8:16] = 255  # the middle third is white
    Image.fromarray(picture).save(root / "test" / "red" / "99.png")
    data = FolderData(root=root, image_size=8, hold=hold)
    white = (pixels(data, "test") == 255).flatten(1).all(1)
    assert white.sum() == 1


def test_orientation_grey_palette_alpha_and_16_bit_are_understood(root, hold):
    place = root / "test" / "blue"
    shutil.rmtree(place)
    place.mkdir()
    upright = np.zeros((10, 10), np.uint8)
    upright[:5] = 240  # light above
    Image.fromarray(upright).save(place / "a_grey.png")
    Image.fromarray(upright).convert("P").save(place / "b_palette.gif")
    Image.fromarray(upright).convert("RGBA").save(place / "c_alpha.png")
    Image.fromarray(upright.astype(np.uint16) * 257).save(place / "d_16bit.png")
    turned = Image.fromarray(np.rot90(upright).copy())
    exif = Image.Exif()
    exif[274] = 6  # to be turned clockwise to be upright
    turned.save(place / "e_exif.jpg", exif=exif, quality=95)
    data = FolderData(root=root, image_size=10, channels=3, hold=hold)
    images = pixels(data, "test")[data.split("test").labels == 0]
    assert len(images) == 5
    assert (images[:, :, :4].double() - 240).abs().max() < 12
    assert images[:, :, 6:].double().abs().max() < 12
    grey = FolderData(root=root, image_size=10, channels=1, hold=hold)
    assert pixels(grey, "test").shape[1:] == (1, 10, 10)
    assert len(grey.info.mean) == 1


def test_given_constants_are_used_and_val_folder_too(root):
    shutil.copytree(root / "test", root / "val")
    data = FolderData(root=root, image_size=8, mean=[0.5] * 3, std=(0.2, 0.3, 0.4))
    assert data.describe().std == (0.2, 0.3, 0.4)
    data.setup()
    assert data.info.mean == (0.5, 0.5, 0.5)
    assert (data.info.train_size, data.info.val_size) == (18, 5)


def test_adding_files_moves_no_others_between_parts(root):
    def validation():
        source = FolderData(root=root)._sources()["val"]
        return {Path(source.name(i)).name for i in range(len(source)) if source.labels[i] == 0}

    before = validation()
    for i in range(20, 29):
        save(root / "train" / "blue" / f"{i}.png", (8, 8), (0, 0, 255))
        assert len(validation() & before) + len(validation() - before) == len(validation())
    assert len(before & validation()) >= 1
    assert len(validation()) == 2


def harm(root):
    good = (root / "train" / "red" / "01.jpg").read_bytes()
    (root / "train" / "red" / "01.jpg").write_bytes(good[: len(good) // 2])
    (root / "test" / "blue" / "text.png").write_text("not a picture")
    (root / "train" / "blue" / "empty.png").write_bytes(b"")


@pytest.mark.parametrize("hold", ["memory", "mapped"])
def test_corrupt_files_are_named_and_refused(root, hold):
    harm(root)
    for _ in range(2):  # of a file of the cache, as it is made and as it is found
        with pytest.raises(DataError, match="3 image files cannot be read") as error:
            FolderData(root=root, image_size=8, hold=hold).setup()
    for name in ("01.jpg", "text.png", "empty.png", "on_corrupt=skip"):
        assert name in str(error.value)


def test_corrupt_files_are_named_and_skipped(root, hold):
    harm(root)
    data = FolderData(root=root, image_size=8, on_corrupt="skip", hold=hold)
    with pytest.warns(UserWarning, match="3 image files cannot be read") as caught:
        data.setup()
    assert "text.png" in str(caught[0].message)
    assert sorted(Path(path).name for path in data.skipped) == ["01.jpg", "empty.png", "text.png"]
    info = data.info
    assert info.train_size + info.val_size + info.test_size == 17 + 5
    part = data.split("test")
    assert (part.labels == 0).sum() == 3
    colours = torch.tensor(list(COLOURS.values()))[part.labels]
    assert (pixels(data, "test").double().mean((2, 3)) - colours).abs().max() < 6


def test_a_class_with_nothing_readable_is_an_error(root, hold):
    for path in (root / "test" / "red").iterdir():
        path.write_bytes(b"x")
    with (
        pytest.raises(DataError, match="test: no readable image of red"),
        pytest.warns(UserWarning, match="2 image files"),
    ):
        FolderData(root=root, image_size=8, on_corrupt="skip", hold=hold).setup()


def empty_class(root):
    for path in (root / "train" / "red").iterdir():
        path.unlink()
    (root / "train" / "red" / "notes.txt").write_text("")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: shutil.rmtree(r), "is not a folder; expected one with train/ and test/"),
        (lambda r: shutil.rmtree(r / "test"), "test is missing; .*there are: train"),
        (lambda r: (r / "train").rename(r / "Train"), "if 'Train' is meant, rename it to 'train'"),
        (
            lambda r: (r / "train").rename(r / "Trian"),
            "Trian, test; if 'Trian' is meant, rename it to 'train'",
        ),
        (lambda r: shutil.rmtree(r / "train" / "red"), "only the class 'blue'"),
        (
            lambda r: [shutil.rmtree(r / "train" / c) for c in COLOURS],
            "train has no class folders; expected a folder of images for each",
        ),
        (empty_class, "no image files for red; expected names that end in"),
        (lambda r: (r / "test" / "red").rename(r / "test" / "reed"), "lacks red and has reed"),
        (lambda r: shutil.copytree(r / "test" / "red", r / "test" / "x"), "has x, which train/"),
    ],
)
def test_folders_that_do_not_fit_are_refused_before_pixels_are_read(root, change, message):
    change(root)
    with pytest.raises(DataError, match=message):
        FolderData(root=root).describe()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"on_corrupt": "skipp"}, ValueError, "did you mean 'skip'"),
        ({"hold": "maped"}, ValueError, "did you mean 'mapped'"),
        ({"workers": 0}, ValueError, "workers must be at least 1"),
        ({"stored_size": 80}, ValueError, "without random_resized_crop .* leave it out"),
        (
            {"stored_size": 63, "random_resized_crop": [0.5, 1]},
            ValueError,
            "stored_size must be at least 64",
        ),
        ({"random_resized_crop": 0.5}, TypeError, "must be .least, most. share of the area"),
        ({"random_resized_crop": [0.5]}, ValueError, "must be .least, most. share of the area"),
        ({"random_resized_crop": [0.9, 0.5]}, ValueError, "0 < least <= most <= 1"),
        ({"random_resized_crop": [0, 1]}, ValueError, "0 < least <= most <= 1"),
        ({"random_resized_crop": [0.5, 1.5]}, ValueError, "must lie in 0..1"),
        ({"image_size": 0}, ValueError, "image_size must be at least 1"),
        ({"image_size": "64"}, TypeError, "image_size must be a whole number, got '64'"),
        ({"image_size": [8, 8, 3]}, ValueError, r"one side or \(H, W\)"),
        ({"image_size": 4}, ValueError, "crop_pad=4 must be smaller"),
        ({"channels": 4}, ValueError, "channels must be 1"),
        ({"mean": [0.5] * 3}, ValueError, "mean and std belong together"),
        ({"mean": [0.5], "std": [0.5]}, ValueError, "mean needs 3 values"),
        ({"mean": [120.0] * 3, "std": [60.0] * 3}, ValueError, "mean must lie in 0..1"),
    ],
)
def test_bad_values_stop_at_construction(arguments, error, message):
    with pytest.raises(error, match=message):
        FolderData(root="nowhere", **arguments)


def test_too_many_images_for_the_memory_are_refused(root):
    ways = "hold=memory: 23 images .* need 5783.5 GiB, .*hold=mapped .* or data.hold=stream"
    with pytest.raises(DataError, match=ways):
        FolderData(root=root, image_size=300_000).setup()


def test_channel_statistics_of_a_constant_channel():
    mean, std = channel_statistics(torch.full((3, 1, 2, 5), 51, dtype=torch.uint8))
    assert mean == pytest.approx((0.2,))
    assert std == (1 / 255,)


def test_hidden_folders_and_files_are_not_trained_on_and_it_is_said(root):
    picture = (root / "train" / "red" / "00.png").read_bytes()
    before = FolderData(root=root).describe()
    assert before.source == f"image files in {root}"
    for place in (
        *("train/red/.ipynb_checkpoints/00-checkpoint.png", "train/blue/@eaDir/00.png"),
        *("test/red/._00.png", "train/.ipynb_checkpoints/00.png", "train/of no class.png"),
    ):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(picture)
    data = FolderData(root=root, image_size=8)
    info = data.describe()
    assert info.classes == ("blue", "red")
    assert (info.train_size, info.val_size, info.test_size) == (15, 3, 5)
    assert "not read, because hidden, linked or of no class: 5, such as" in info.source
    data.setup()
    assert data.info.train_size + data.info.val_size == 18
    assert data.info.source == info.source


@pytest.mark.parametrize("part", ["test", "val"])
def test_parts_without_one_of_the_classes_are_judged_by_name(root, part, hold):
    save(root / "train" / "amber" / "0.png", (9, 9), (250, 200, 0))
    save(root / part / "red" / "98.png", (9, 9), COLOURS["red"])
    (root / part / "blue").mkdir(parents=True, exist_ok=True)
    shutil.rmtree(root / part / "blue")
    (root / part / "amber").mkdir()  # and nothing in it
    data = FolderData(root=root, image_size=8, hold=hold)
    data.setup()
    assert data.info.classes == ("amber", "blue", "red")
    assert set(data.split(part).labels.tolist()) == {2}
    assert set(data.split("train").labels.tolist()) == {0, 1, 2}
    assert f"{part}/ has no images of amber, blue" in data.info.source


def test_one_image_of_each_class_leaves_nothing_to_validate_with(root):
    for name in COLOURS:
        for path in sorted((root / "train" / name).iterdir())[1:]:
            path.unlink()
    with pytest.raises(DataError, match=r"nothing to validate with: .*no class has 2; add"):
        FolderData(root=root).describe()
    shutil.copytree(root / "test", root / "val")
    FolderData(root=root, image_size=8).setup()


def test_names_of_skipped_files_steer_no_terminal(root, hold):
    bad = root / "train" / "red" / "\x1b[31m\n.png"
    bad.write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"red/\\x1b\[31m\\n\.png: not an image") as caught:
        FolderData(root=root, image_size=8, on_corrupt="skip", hold=hold).setup()
    assert "\x1b" not in str(caught[0].message)

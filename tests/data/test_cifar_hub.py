"""CIFAR as the Hub's copies lay it out: places, parts, columns, and what is near but not read."""

import os
import shutil

import numpy as np
import pytest
from copies import parquet_bytes

from cvattn.data import CIFAR10Data, CIFAR100Data, DataError, choose

REVISION = "0b2714987fa478483af9968de7c934580d0bb9a2"


def write(tiny, root, places, **columns):
    """Parts of the small CIFAR: ``places`` has for each split the names of its parts."""
    for split, names in places.items():
        pieces = zip(
            names,
            np.array_split(tiny.pixels[split], len(names)),
            np.array_split(tiny.labels[split], len(names)),
            strict=True,
        )
        for name, pixels, labels in pieces:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(parquet_bytes(pixels, labels, **columns))


def single(place, suffix=""):
    return {s: [f"{place}{s}-00000-of-00001{suffix}.parquet"] for s in ("train", "test")}


LAYOUTS = {
    "data": single("data/"),
    "hash": single("data/", "-b42cd24ec6f8a1e0"),
    "converted": {s: [f"plain_text/{s}/0000.parquet"] for s in ("train", "test")},
    "parts": {
        "train": [f"data/train-0000{i}-of-00003.parquet" for i in range(3)],
        "test": ["data/test-00000-of-00001.parquet"],
    },
    "converted parts": {
        "train": [f"cifar10/plain_text/train/000{i}.parquet" for i in range(3)],
        "test": ["cifar10/plain_text/test/0000.parquet"],
    },
    "snapshot": single(f"datasets--uoft-cs--cifar10/snapshots/{REVISION}/plain_text/"),
    "root is the snapshots' folder": single(f"snapshots/{REVISION}/plain_text/"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("image_column", ["img", "image"])
def test_every_layout_gives_the_same_images(tiny, tmp_path, layout, image_column):
    write(tiny, tmp_path, LAYOUTS[layout], image_column=image_column)
    data = CIFAR10Data(root=tmp_path, train_on_val=True)
    data.prepare_data()
    data.setup()
    for split in ("train", "test"):
        part = data.split(split)
        assert np.array_equal(part.images.movedim(1, -1).numpy(), tiny.pixels[split])
        assert np.array_equal(part.labels.numpy(), tiny.labels[split])
    assert data.info.official_pixels is True
    assert "not read" not in data.info.source


@pytest.mark.parametrize("place", ["cifar100/", "data/", f"snapshots/{REVISION}/cifar100/"])
def test_cifar_100_has_its_fine_labels(tiny100, tmp_path, place):
    write(tiny100, tmp_path, single(place), label_column="fine_label")
    data = CIFAR100Data(root=tmp_path)
    data.prepare_data()
    data.setup()
    assert np.array_equal(data.split("test").labels.numpy(), tiny100.labels["test"])


def test_links_of_a_hub_cache_are_followed(tiny, tmp_path):
    write(tiny, tmp_path / "blobs", single(""))
    place = tmp_path / "root" / "datasets--cifar10" / "snapshots" / REVISION / "plain_text"
    place.mkdir(parents=True)
    for path in (tmp_path / "blobs").iterdir():
        (place / path.name).symlink_to(path)
    assert str(place) in CIFAR10Data(root=tmp_path / "root").describe().source


def test_of_several_snapshots_main_is_taken(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("CVATTN_OFFLINE", "1")
    for revision in ("1" * 40, REVISION):
        write(tiny, tmp_path, single(f"snapshots/{revision}/plain_text/"))
    with pytest.raises(DataError, match="CIFAR-10 is not in"):
        CIFAR10Data(root=tmp_path).prepare_data()
    (tmp_path / "refs").mkdir()
    (tmp_path / "refs" / "main").write_text(REVISION)
    assert REVISION in CIFAR10Data(root=tmp_path).describe().source


def test_a_missing_part_is_named(tiny, tmp_path):
    write(tiny, tmp_path, LAYOUTS["parts"])
    (tmp_path / "data" / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(DataError, match=r"train-00001-of-00003\.parquet is missing"):
        CIFAR10Data(root=tmp_path).prepare_data()


def test_a_part_that_was_lost_at_the_end_is_seen_by_the_count(tiny, tmp_path):
    write(tiny, tmp_path, LAYOUTS["converted parts"])
    (tmp_path / "cifar10/plain_text/train/0002.parquet").unlink()
    with pytest.raises(DataError, match=r"0000\.parquet and the other parts hold 34 .*expected 50"):
        CIFAR10Data(root=tmp_path).prepare_data()


def test_parts_in_another_order_are_refused(tiny, tmp_path):
    write(tiny, tmp_path, LAYOUTS["parts"])
    first, second = (tmp_path / "data" / f"train-0000{i}-of-00003.parquet" for i in (0, 1))
    shutil.move(first, tmp_path / "held")
    shutil.move(second, first)
    shutil.move(tmp_path / "held", second)
    with pytest.raises(DataError, match="other labels than CIFAR-10's, or in another order"):
        CIFAR10Data(root=tmp_path).prepare_data()


def test_two_copies_in_a_folder_are_refused(tiny, tmp_path):
    write(tiny, tmp_path, LAYOUTS["data"])
    write(tiny, tmp_path, {s: [f"data/{s}/0000.parquet"] for s in ("train", "test")})
    with pytest.raises(DataError, match=r"'train' more than once .*leave one of them"):
        CIFAR10Data(root=tmp_path).prepare_data()


def test_columns_of_other_names_are_listed(tiny, tmp_path):
    write(tiny, tmp_path, LAYOUTS["data"], image_column="picture")
    with pytest.raises(DataError, match=r"no column 'img or image'; .*has 'picture', 'label'"):
        CIFAR10Data(root=tmp_path).setup()


def test_what_is_near_but_not_read_is_said(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("CVATTN_OFFLINE", "1")
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"")
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"")  # another data set
    (tmp_path / "train.parquet").write_bytes(b"")
    near = r"near, but not read: .*cifar-10-binary\.tar\.gz, .*train\.parquet\)"
    with pytest.raises(DataError, match=near) as error:
        CIFAR10Data(root=tmp_path).prepare_data()
    assert "cifar-100-python.tar.gz" not in str(error.value)
    assert "cifar-10-binary.tar.gz" in CIFAR10Data(root=tmp_path).describe().source
    assert "cifar-10-binary.tar.gz" in choose(tmp_path, offline=True).reason
    write(tiny, tmp_path, LAYOUTS["data"])
    data = CIFAR10Data(root=tmp_path)
    data.setup()
    assert "data (near, but not read: " in data.info.source
    assert os.fspath(tmp_path / "train.parquet") in data.info.source

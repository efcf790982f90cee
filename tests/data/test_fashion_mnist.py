"""Fashion-MNIST in every place: found, read the same, refused or fetched again where damaged."""

import dataclasses
import gzip
import hashlib
import os
import struct
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from copies import Server

import cvattn.data
from cvattn.data import DataError, FashionMNISTData, remote
from cvattn.data.images import fashion_mnist, fashion_mnist_files
from cvattn.data.images.base import channel_statistics
from cvattn.inference.own_data import MODULES

PLACES = ["", "fashion-mnist", "fashion_mnist", "FashionMNIST/raw"]
REAL = os.environ.get("CVATTN_DATA", "data")
TRAIN, TEST = 70, 30


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A Fashion-MNIST of 70 + 30 images as bytes; the expected sums are its own."""
    rng = np.random.default_rng(3)
    pixels, labels, contents, files = {}, {}, {}, {}
    for part, count in (("train", TRAIN), ("test", TEST)):
        pixels[part] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels[part] = rng.permutation(np.arange(count, dtype=np.uint8) % 10)
        facts = []
        for idx, values in zip(
            fashion_mnist_files.FILES[part], (pixels[part], labels[part]), strict=True
        ):
            header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
            content = contents[idx.name] = header + values.tobytes()
            facts.append(
                dataclasses.replace(
                    idx, sha256=hashlib.sha256(content).hexdigest(), shape=values.shape
                )
            )
        files[part] = tuple(facts)
    monkeypatch.setattr(fashion_mnist_files, "FILES", files)
    monkeypatch.setattr(fashion_mnist_files, "DEBIAN", tmp_path / "not-installed")
    monkeypatch.setattr(fashion_mnist, "VAL_SIZE", 20)
    return types.SimpleNamespace(pixels=pixels, labels=labels, contents=contents)


def lay_out(tiny, folder, *, packed):
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, content in tiny.contents.items():
        paths.append(folder / (f"{name}.gz" if packed else name))
        paths[-1].write_bytes(gzip.compress(content) if packed else content)
    return paths


@pytest.fixture
def serve_tiny(tiny, monkeypatch):
    server = Server()
    for name, content in tiny.contents.items():
        server.files[f"/{name}.gz"] = gzip.compress(content)
    from torchvision.datasets import FashionMNIST

    monkeypatch.setattr(FashionMNIST, "mirrors", [f"{server.url}/"])
    yield server
    server.close()


@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "gz"])
@pytest.mark.parametrize("place", PLACES)
def test_every_place_gives_the_same_images(tiny, tmp_path, place, packed):
    lay_out(tiny, tmp_path / place, packed=packed)
    before = sorted(tmp_path.rglob("*"))
    data = FashionMNISTData(root=tmp_path)
    assert str(tmp_path / place) in data.describe().source
    data.prepare_data()
    data.setup()
    test = data.split("test")
    assert np.array_equal(test.images[:, 0].numpy(), tiny.pixels["test"])
    assert np.array_equal(test.labels.numpy(), tiny.labels["test"])
    both = torch.cat([data.split(part).images for part in ("train", "val")])
    assert {i.numpy().tobytes() for i in both} == {i.tobytes() for i in tiny.pixels["train"]}
    info = data.info
    assert (info.train_size, info.val_size, info.test_size) == (50, 20, 30)
    assert info.official_pixels is True
    assert data.split("val").labels.bincount().tolist() == [2] * 10
    assert sorted(tmp_path.rglob("*")) == before  # reading writes nothing there


def test_debians_package_is_found_where_it_installs_them(tiny, tmp_path, monkeypatch):
    lay_out(tiny, tmp_path / "debian", packed=True)
    monkeypatch.setattr(fashion_mnist_files, "DEBIAN", tmp_path / "debian")
    data = FashionMNISTData(root=tmp_path / "nothing")
    data.prepare_data()
    data.setup()
    assert data.info.source == f"idx files in {tmp_path / 'debian'}"
    # What a user has comes first.
    lay_out(tiny, tmp_path / "mine", packed=False)
    assert str(tmp_path / "mine") in FashionMNISTData(root=tmp_path / "mine").describe().source


def test_training_on_the_validation_images_too(tiny, tmp_path):
    lay_out(tiny, tmp_path, packed=False)
    plain = FashionMNISTData(root=tmp_path)
    whole = FashionMNISTData(root=tmp_path, train_on_val=True)
    assert whole.describe().train_size == TRAIN
    for data in (plain, whole):
        data.setup()
    assert len(plain.split("train").images) == TRAIN - 20
    assert np.array_equal(whole.split("train").images[:, 0].numpy(), tiny.pixels["train"])
    assert torch.equal(whole.split("val").images, plain.split("val").images)


@pytest.mark.parametrize("image_size", [32, [32, 32], (32, 32)])
def test_32_pixels_are_28_with_a_black_border(tiny, tmp_path, image_size):
    lay_out(tiny, tmp_path, packed=False)
    data = FashionMNISTData(root=tmp_path, image_size=image_size)
    assert data.describe().image_size == (32, 32)
    images = data.split("test").images
    assert np.array_equal(images[:, 0, 2:30, 2:30].numpy(), tiny.pixels["test"])
    assert images.sum() == tiny.pixels["test"].sum()


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "gz"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "changed", "other data"])
def test_damage_names_the_file_and_leaves_it_alone(tiny, tmp_path, at, packed, damage):
    path = lay_out(tiny, tmp_path, packed=packed)[at]
    data = path.read_bytes()
    content = bytearray(tiny.contents[path.name.removesuffix(".gz")])
    content[-1] ^= 1
    harm = {
        "truncated": data[: len(data) // 2],
        "empty": b"",
        "changed": b"\0" * len(data),
        "other data": gzip.compress(bytes(content)) if packed else bytes(content),
    }[damage]
    path.write_bytes(harm)
    said = "MNIST's files have the same names" if damage == "other data" else "damaged"
    with pytest.raises(DataError, match=f"{path.name} .*{said}.*not a file that we downloaded"):
        FashionMNISTData(root=tmp_path).prepare_data()
    with pytest.raises(DataError, match=path.name):
        FashionMNISTData(root=tmp_path).setup()
    assert path.read_bytes() == harm


def test_a_missing_one_of_four_is_named(tiny, tmp_path):
    paths = lay_out(tiny, tmp_path / "fashion-mnist", packed=True)
    paths[2].unlink()
    with pytest.raises(
        DataError, match=r"t10k-images-idx3-ubyte is missing .*with or without \.gz"
    ):
        FashionMNISTData(root=tmp_path).describe()
    lay_out(tiny, tmp_path, packed=False)  # a complete copy wins
    assert FashionMNISTData(root=tmp_path).describe().source == f"idx files in {tmp_path}"


def test_it_downloads_what_is_missing_to_where_torchvision_looks(serve_tiny, tmp_path):
    data = FashionMNISTData(root=tmp_path)
    assert "to be downloaded" in data.describe().source
    data.prepare_data()
    data.setup()
    assert data.info.official_pixels is True
    raw = tmp_path / "FashionMNIST" / "raw"
    assert len(list(raw.glob("*-ubyte.gz"))) == 4
    # An interrupted download goes on with the files that are not there.
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    serve_tiny.log.clear()
    FashionMNISTData(root=tmp_path).prepare_data()
    asked = [path for path, _ in serve_tiny.log[1:]]  # the first is the probe's
    assert asked == ["/t10k-labels-idx1-ubyte.gz"]


def test_our_damaged_download_is_set_aside_and_fetched_again(serve_tiny, tmp_path, monkeypatch):
    FashionMNISTData(root=tmp_path).prepare_data()
    path = tmp_path / "FashionMNIST" / "raw" / "train-labels-idx1-ubyte.gz"
    good = path.read_bytes()
    path.write_bytes(good[:-9])
    monkeypatch.setenv("CVATTN_OFFLINE", "1")
    with pytest.raises(DataError, match=f"{path.name}.*CVATTN_OFFLINE forbids"):
        FashionMNISTData(root=tmp_path).prepare_data()
    monkeypatch.delenv("CVATTN_OFFLINE")
    FashionMNISTData(root=tmp_path).prepare_data()
    assert path.read_bytes() == good
    assert path.with_name(path.name + ".damaged").read_bytes() == good[:-9]


def test_a_server_that_sends_something_else_ends_in_an_error(serve_tiny, tmp_path):
    serve_tiny.files["/train-images-idx3-ubyte.gz"] = gzip.compress(b"MNIST, perhaps")
    with pytest.raises(DataError, match="what the server sends is not Fashion-MNIST"):
        FashionMNISTData(root=tmp_path).prepare_data()


def test_offline_without_data_says_what_to_do(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("CVATTN_OFFLINE", "1")
    with pytest.raises(DataError, match=r"forbids.*t10k-labels-idx1-ubyte.*apt install.*digits"):
        FashionMNISTData(root=tmp_path).prepare_data()
    with pytest.raises(DataError, match="call prepare_data"):
        FashionMNISTData(root=tmp_path).setup()
    assert list(tmp_path.iterdir()) == []


def test_the_download_is_torchvisions():
    from torchvision.datasets import FashionMNIST

    names = {name for name, _ in FashionMNIST.resources}
    for source, mirror in zip(fashion_mnist_files.sources(), FashionMNIST.mirrors, strict=True):
        assert {file.url for file in source.files} == {f"{mirror}{name}" for name in names}
        assert isinstance(source, remote.Source)
        assert source.name in mirror


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"image_size": 64}, ValueError, "image_size=64 must be 28, or 32"),
        ({"image_size": (28, 32)}, ValueError, r"image_size=\(28, 32\) must be 28"),
        ({"image_size": "28"}, ValueError, "image_size='28' must be 28"),
        ({"flip": "randm"}, ValueError, "did you mean 'random'"),
        ({"crop_pad": 28}, ValueError, "crop_pad=28 must be smaller"),
        ({"test_views": "flop"}, ValueError, "did you mean 'flip'"),
    ],
)
def test_bad_values_stop_at_construction(arguments, error, message):
    with pytest.raises(error, match=message):
        FashionMNISTData(**arguments)


def test_each_image_data_set_has_one_name():
    """In conf/data, in what it says of itself, and where a checkpoint's data is looked up."""
    import yaml

    conf = Path(__file__).parents[2] / "conf" / "data"
    for name, cls in MODULES.items():
        target = yaml.safe_load((conf / f"{name}.yaml").read_text())["_target_"]
        assert getattr(cvattn.data, target.removeprefix("cvattn.data.")) is cls
        if name not in ("folder", "hf", "labels_csv", "masks_folder", "webdataset"):  # of a place
            assert cls().describe().name == name
    assert "fashion_mnist" in MODULES


@pytest.fixture
def real():
    if fashion_mnist_files.find(Path(REAL)) is None:
        pytest.skip("there is no Fashion-MNIST here: apt install dataset-fashion-mnist")
    return Path(REAL)


@pytest.mark.slow
@pytest.mark.parametrize("side", [28, 32])
def test_the_real_copy(real, side):
    data = FashionMNISTData(root=real, image_size=side)
    data.prepare_data()
    data.setup()
    assert [len(data.split(s).images) for s in ("train", "val", "test")] == [55_000, 5_000, 10_000]
    assert data.split("val").labels.bincount().tolist() == [500] * 10
    # The split is pinned, for figures of different days.
    digest = hashlib.sha256(data.split("train").labels.numpy().tobytes()).hexdigest()
    assert digest[:16] == "c0c17473259aeae4"
    whole = torch.cat([data.split(s).images for s in ("train", "val")])
    mean, std = channel_statistics(whole)
    np.testing.assert_allclose(mean, data.info.mean, atol=1e-6)
    np.testing.assert_allclose(std, data.info.std, atol=1e-6)


def test_the_sums_are_those_of_the_published_files(real):
    """Under the headers that the published .gz files have, the copy has the md5 sums of these.

    This needs compressed data as it was published: torchvision's download, or Debian's, in which
    the header alone is another.
    """
    from torchvision.datasets import FashionMNIST

    made = {"train": 1504176606, "t10k": 1504176627}  # when the published files were compressed
    published = dict(FashionMNIST.resources)
    for path in fashion_mnist_files.find(real).paths:
        if path.suffix != ".gz":
            pytest.skip(f"{path} is not compressed")
        content = path.read_bytes()
        if not content[3] & 8:  # no name in the header
            time = struct.pack("<I", made[path.name.partition("-")[0]])
            header = b"\x1f\x8b\x08\x08" + time + b"\x00\x03" + path.stem.encode() + b"\0"
            content = header + content[10:]
        assert hashlib.md5(content).hexdigest() == published[path.name]

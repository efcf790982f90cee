"""CIFAR-10 in every form: found, read the same, refused or fetched again where damaged."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from copies import change, lay_out, parquet_bytes

from cvattn.data import CIFAR10Data, CIFAR100Data, DataError, download, remote
from cvattn.data.images import cifar_files, cifar_parquet

FORMS = ["folder", "archive", "parquet", "parquet:plain_text", "parquet:cifar10/plain_text"]
REAL = os.environ.get("CVATTN_DATA")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images(tiny, tmp_path, form):
    lay_out(tiny, tmp_path, form)
    before = sorted(tmp_path.rglob("*"))
    data = CIFAR10Data(root=tmp_path)
    data.prepare_data()
    data.setup()
    test = data.split("test")
    assert np.array_equal(test.images.permute(0, 2, 3, 1).numpy(), tiny.pixels["test"])
    assert np.array_equal(test.labels.numpy(), tiny.labels["test"])
    both = torch.cat([data.split(s).images for s in ("train", "val")])
    assert {i.numpy().tobytes() for i in both.permute(0, 2, 3, 1)} == {
        i.tobytes() for i in tiny.pixels["train"]
    }
    info = data.info
    assert (info.train_size, info.val_size, info.test_size) == (40, 10, 10)
    assert info.official_pixels is True
    assert str(tmp_path) in info.source
    assert data.split("val").labels.bincount().tolist() == [1] * 10
    assert sorted(tmp_path.rglob("*")) == before  # reading writes nothing there


def test_training_on_the_validation_images_too(tiny, tmp_path):
    lay_out(tiny, tmp_path, "folder")
    plain, whole = CIFAR10Data(root=tmp_path), CIFAR10Data(root=tmp_path, train_on_val=True)
    assert whole.describe().train_size == 50
    for data in (plain, whole):
        data.setup()
    assert len(plain.split("train").images) == 40
    assert torch.equal(
        whole.split("train").images.movedim(1, -1), torch.from_numpy(tiny.pixels["train"])
    )
    assert torch.equal(whole.split("val").images, plain.split("val").images)


def test_other_pixels_are_not_called_official(tiny, tmp_path):
    tiny.pixels["test"][3, 5, 7, 1] ^= 1
    tiny.parquets["test"] = parquet_bytes(tiny.pixels["test"], tiny.labels["test"])
    lay_out(tiny, tmp_path, "parquet")
    data = CIFAR10Data(root=tmp_path)
    data.setup()
    assert data.info.official_pixels is False


@pytest.mark.parametrize(
    ("form", "at"), [("archive", 0), ("parquet", 0), ("parquet", 1), ("folder", 2), ("folder", 6)]
)
@pytest.mark.parametrize("damage", ["truncated", "empty", "changed"])
def test_damage_names_the_file_and_leaves_it_alone(tiny, tmp_path, monkeypatch, form, at, damage):
    path = lay_out(tiny, tmp_path, form)[at]
    data = path.read_bytes()
    harm = {"truncated": data[: len(data) // 2], "empty": b"", "changed": b"\0" * len(data)}
    path.write_bytes(harm[damage])
    module = CIFAR10Data(root=tmp_path)
    with pytest.raises(DataError, match=f"{path.name} .*not a file that we downloaded"):
        module.prepare_data()
    with pytest.raises(DataError, match=path.name):
        CIFAR10Data(root=tmp_path).setup()
    assert path.read_bytes() == harm[damage]


def test_an_undecodable_image_names_its_row(tiny, tmp_path):
    broken = {4: b"\x89PNG nonsense"}
    tiny.parquets["test"] = parquet_bytes(tiny.pixels["test"], tiny.labels["test"], replace=broken)
    lay_out(tiny, tmp_path, "parquet")
    with pytest.raises(DataError, match=r"test-00000.*image 4 cannot be decoded"):
        CIFAR10Data(root=tmp_path).setup()


def test_other_labels_and_counts_are_refused(tiny, tmp_path):
    tiny.parquets["train"] = parquet_bytes(tiny.pixels["train"], tiny.labels["train"][::-1].copy())
    lay_out(tiny, tmp_path, "parquet")
    with pytest.raises(DataError, match=r"train-00000.*other labels than CIFAR-10's"):
        CIFAR10Data(root=tmp_path).setup()
    tiny.parquets["train"] = parquet_bytes(tiny.pixels["train"][:7], tiny.labels["train"][:7])
    lay_out(tiny, tmp_path, "parquet")
    with pytest.raises(DataError, match="holds 7 images, expected 50"):
        CIFAR10Data(root=tmp_path).setup()


def test_one_of_two_parquet_files_is_named(tiny, tmp_path):
    paths = lay_out(tiny, tmp_path, "parquet:plain_text")
    paths[1].unlink()
    with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet is missing"):
        CIFAR10Data(root=tmp_path).prepare_data()


def test_a_complete_copy_wins_over_an_incomplete_one(tiny, tmp_path):
    lay_out(tiny, tmp_path, "folder")[3].unlink()
    assert cifar_files.find(CIFAR10Data.cifar, tmp_path).form == "folder"
    lay_out(tiny, tmp_path, "archive")
    assert cifar_files.find(CIFAR10Data.cifar, tmp_path).form == "archive"


def test_it_downloads_and_reads(serve_tiny, tmp_path):
    data = CIFAR10Data(root=tmp_path / "new")
    assert "to be downloaded" in data.describe().source
    data.prepare_data()
    data.setup()
    assert data.info.official_pixels is True
    assert "parquet" in data.info.source or "archive" in data.info.source


def test_both_parquet_files_come_and_an_interrupted_pair_goes_on(
    serve_tiny, server, tmp_path, monkeypatch
):
    change(monkeypatch, sources=(serve_tiny["copy"],))
    download.fetch(serve_tiny["copy"].files[0], tmp_path)
    server.log.clear()
    data = CIFAR10Data(root=tmp_path)
    data.prepare_data()
    data.setup()
    assert data.info.test_size == 10
    # The first file is asked for once, by the probe.
    assert [path for path, _ in server.log].count("/train-00000-of-00001.parquet") == 1


@pytest.mark.parametrize("name", ["official", "copy"])
def test_our_damaged_download_is_set_aside_and_fetched_again(
    serve_tiny, tmp_path, monkeypatch, name
):
    change(monkeypatch, sources=(serve_tiny[name],))
    CIFAR10Data(root=tmp_path).prepare_data()
    path = tmp_path / serve_tiny[name].files[-1].path
    good = path.read_bytes()
    path.write_bytes(good[:-9])
    monkeypatch.setenv("CVATTN_OFFLINE", "1")
    with pytest.raises(DataError, match=f"{path.name}.*CVATTN_OFFLINE forbids"):
        CIFAR10Data(root=tmp_path).prepare_data()
    monkeypatch.delenv("CVATTN_OFFLINE")
    CIFAR10Data(root=tmp_path).prepare_data()
    assert path.read_bytes() == good
    assert path.with_name(path.name + ".damaged").read_bytes() == good[:-9]


def test_a_server_that_sends_something_else_ends_in_an_error(
    serve_tiny, server, tmp_path, monkeypatch
):
    change(monkeypatch, sources=(serve_tiny["official"],))
    server.files["/official.tar.gz"] = b"a page that asks for a password"
    with pytest.raises(DataError, match="what the server sends is not CIFAR-10"):
        CIFAR10Data(root=tmp_path).prepare_data()


def test_several_processes_download_once(serve_tiny, server, tmp_path, monkeypatch):
    change(monkeypatch, sources=(serve_tiny["official"],))
    server.delay = 0.002
    errors = []

    def work():
        try:
            CIFAR10Data(root=tmp_path).prepare_data()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(server.log) == 2  # one probe, one download


def test_offline_without_data_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("CVATTN_OFFLINE", "1")
    with pytest.raises(
        DataError, match=r"CVATTN_OFFLINE forbids.*cifar-10-python\.tar\.gz.*digits"
    ):
        CIFAR10Data(root=tmp_path).prepare_data()
    assert list(tmp_path.iterdir()) == []


def test_no_network_is_an_error_within_20_seconds(tmp_path, monkeypatch):
    dead = remote.Source("dead", (remote.RemoteFile("http://127.0.0.1:9/c", "c", 10),))
    change(monkeypatch, sources=(dead,))
    start = time.monotonic()
    with pytest.raises(DataError, match=r"no server answered \(tried http://127.0.0.1:9/c.*put "):
        CIFAR10Data(root=tmp_path).prepare_data()
    assert time.monotonic() - start < 20


def test_setup_without_data_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="call prepare_data"):
        CIFAR10Data(root=tmp_path).setup()


def test_decoded_pixels_are_cached_and_a_damaged_cache_is_not_believed(tiny, tmp_path, monkeypatch):
    cache = Path(os.environ["CVATTN_CACHE"])
    lay_out(tiny, tmp_path, "parquet")
    decoded = []
    decode = cifar_parquet._decode
    monkeypatch.setattr(
        cifar_parquet, "_decode", lambda *args: (decoded.append(1), decode(*args))[1]
    )

    def fingerprint():
        data = CIFAR10Data(root=tmp_path)
        data.setup()
        return data.info.fingerprint

    first = fingerprint()
    assert len(decoded) == 60
    assert fingerprint() == first
    assert len(decoded) == 60
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    for bad in (bytes(content), file.read_bytes()[:5000], b"", b"nonsense"):
        decoded.clear()
        file.write_bytes(bad)
        assert fingerprint() == first
        assert len(decoded) == 60
    tiny.parquets["test"] = parquet_bytes(255 - tiny.pixels["test"], tiny.labels["test"])
    lay_out(tiny, tmp_path, "parquet")
    assert fingerprint() != first
    assert len(list(cache.iterdir())) == 1


def test_no_cache_is_no_error(tiny, tmp_path, monkeypatch):
    lay_out(tiny, tmp_path / "data", "parquet")
    (tmp_path / "file").write_text("")
    for value in ("off", str(tmp_path / "file" / "cache")):
        monkeypatch.setenv("CVATTN_CACHE", value)
        data = CIFAR10Data(root=tmp_path / "data")
        data.setup()
        assert data.info.test_size == 10


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"flip": "randm"}, ValueError, "did you mean 'random'"),
        ({"batch_size": "512"}, TypeError, "batch_size must be a whole number"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"crop_pad": 32}, ValueError, "crop_pad=32 must be smaller"),
        ({"eval_batch_size": 0}, ValueError, "eval_batch_size must be at least 1"),
    ],
)
def test_bad_values_stop_at_construction(arguments, error, message):
    with pytest.raises(error, match=message):
        CIFAR10Data(**arguments)


@pytest.mark.skipif(not REAL, reason="CVATTN_DATA names no copy of CIFAR-10")
def test_the_real_copy(monkeypatch):
    monkeypatch.delenv("CVATTN_CACHE")  # the user's own: decoding takes seconds
    data = CIFAR10Data(root=REAL)
    if cifar_files.find(CIFAR10Data.cifar, data.root) is None:
        pytest.skip("CVATTN_DATA holds no CIFAR-10")
    data.prepare_data()
    data.setup()
    assert [len(data.split(s).images) for s in ("train", "val", "test")] == [45_000, 5_000, 10_000]
    assert data.split("val").labels.bincount().tolist() == [500] * 10
    # The split depends on the labels alone: pinned for every copy, whatever its pixels.
    import hashlib

    digest = hashlib.sha256(data.split("train").labels.numpy().tobytes()).hexdigest()
    assert digest[:16] == "04a3800826cabe3a"
    pixels = torch.cat([data.split(s).images for s in ("train", "val")]).double() / 255
    tolerance = 1e-4 if data.info.official_pixels else 4e-3
    for channel in range(3):
        assert abs(pixels[:, channel].mean() - data.info.mean[channel]) < tolerance
        assert abs(pixels[:, channel].std() - data.info.std[channel]) < tolerance


@pytest.mark.parametrize("form", ["folder", "archive", "parquet", "parquet:cifar100"])
def test_cifar_100_in_every_form(tiny100, tmp_path, form):
    lay_out(tiny100, tmp_path, form)
    data = CIFAR100Data(root=tmp_path)
    data.prepare_data()
    data.setup()
    test = data.split("test")
    assert np.array_equal(test.images.permute(0, 2, 3, 1).numpy(), tiny100.pixels["test"])
    assert np.array_equal(test.labels.numpy(), tiny100.labels["test"])
    info = data.info
    assert (info.name, info.train_size, info.val_size, info.test_size) == ("cifar100", 40, 10, 10)
    # Of a parquet file that is no JPEG nobody knows.
    assert info.official_pixels is (None if form.startswith("parquet") else True)


def test_cifar_100_has_100_classes_in_the_official_order():
    classes = CIFAR100Data().describe().classes
    assert len(set(classes)) == 100
    assert list(classes) == sorted(classes)


def test_a_jpeg_copy_of_cifar_100_is_not_official(tiny100, tmp_path):
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(tiny100.pixels["test"][0]).save(file, "JPEG")
    tiny100.parquets["test"] = parquet_bytes(
        tiny100.pixels["test"],
        tiny100.labels["test"],
        label_column="fine_label",
        replace={0: file.getvalue()},
    )
    lay_out(tiny100, tmp_path, "parquet")
    data = CIFAR100Data(root=tmp_path)
    data.setup()
    assert data.info.official_pixels is False


def test_other_data_is_not_taken_for_cifar_100(tiny, tiny100, tmp_path):
    lay_out(tiny, tmp_path / "ten", "parquet")
    with pytest.raises(DataError, match=r"no column 'fine_label'; is it CIFAR-100\?"):
        CIFAR100Data(root=tmp_path / "ten").prepare_data()
    tiny100.parquets["train"] = parquet_bytes(
        tiny100.pixels["train"], tiny100.labels["train"] // 2, label_column="fine_label"
    )
    lay_out(tiny100, tmp_path / "hundred", "parquet")
    with pytest.raises(DataError, match="has 5 images of each of 10 classes"):
        CIFAR100Data(root=tmp_path / "hundred").prepare_data()


def test_cifar_100_missing_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("CVATTN_OFFLINE", "1")
    with pytest.raises(DataError, match=r"CIFAR-100 is not in .*cifar-100-python\.tar\.gz.*digits"):
        CIFAR100Data(root=tmp_path).prepare_data()

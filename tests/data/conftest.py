"""Fixtures of the data tests: a small CIFAR-10 in every form, and a local server."""

import hashlib
import io
import pickle
import tarfile
import types

import numpy as np
import pytest
from copies import Server, change, md5, parquet_bytes

from cvattn.data import CIFAR10Data, CIFAR100Data, remote
from cvattn.data.images.cifar_facts import PARQUETS

TRAIN, TEST = 50, 10


@pytest.fixture(autouse=True)
def _no_cache_no_network(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("CVATTN_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("CVATTN_OFFLINE", raising=False)
    for cls in (CIFAR10Data, CIFAR100Data):
        change(monkeypatch, cls, sources=())


@pytest.fixture
def tiny(monkeypatch):
    """A CIFAR-10 of 50 + 10 images as bytes of every form; the expected hashes are its own."""
    return make_tiny(monkeypatch, CIFAR10Data, [f"data_batch_{i + 1}" for i in range(5)], "labels")


@pytest.fixture
def tiny100(monkeypatch):
    """The same as a CIFAR-100, of 10 classes."""
    change(monkeypatch, CIFAR100Data, classes=CIFAR100Data.cifar.classes[:10])
    return make_tiny(monkeypatch, CIFAR100Data, ["train"], "fine_labels")


def make_tiny(monkeypatch, cls, train_files, label_key):
    official, meta = cls.cifar.torchvision, cls.cifar.torchvision.meta
    test_file = official.test_list[0][0]
    rng = np.random.default_rng(0)
    pixels = {
        "train": rng.integers(0, 256, (TRAIN, 32, 32, 3), dtype=np.uint8),
        "test": rng.integers(0, 256, (TEST, 32, 32, 3), dtype=np.uint8),
    }
    labels = {"train": np.arange(TRAIN) % 10, "test": np.arange(TEST)[::-1] % 10}

    def batch(split, part):
        data = pixels[split][part].transpose(0, 3, 1, 2).reshape(-1, 3072)
        return pickle.dumps({"data": data, label_key: labels[split][part].tolist()}, protocol=2)

    size = TRAIN // len(train_files)
    batches = {
        name: batch("train", slice(i * size, (i + 1) * size)) for i, name in enumerate(train_files)
    }
    batches[test_file] = batch("test", slice(None))
    batches[meta["filename"]] = pickle.dumps({meta["key"]: list(cls.cifar.classes)}, protocol=2)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in batches.items():
            member = tarfile.TarInfo(f"{official.base_folder}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    column = cls.cifar.label_column
    parquets = {s: parquet_bytes(pixels[s], labels[s], label_column=column) for s in pixels}

    monkeypatch.setattr(official, "tgz_md5", md5(buffer.getvalue()))
    monkeypatch.setattr(official, "train_list", [[n, md5(batches[n])] for n in train_files])
    monkeypatch.setattr(official, "test_list", [[test_file, md5(batches[test_file])]])
    monkeypatch.setattr(official, "meta", {**meta, "md5": md5(batches[meta["filename"]])})
    change(monkeypatch, cls, counts={"train": TRAIN, "test": TEST}, val_size=10)
    if cls.cifar.label_hashes is not None:
        change(
            monkeypatch,
            cls,
            label_hashes={
                s: hashlib.sha256(labels[s].astype(np.uint8).tobytes()).hexdigest() for s in labels
            },
            official_pixels=hashlib.sha256(pixels["test"].tobytes()).hexdigest(),
        )
    return types.SimpleNamespace(
        pixels=pixels,
        labels=labels,
        batches=batches,
        folder=official.base_folder,
        archive=buffer.getvalue(),
        archive_name=cls.cifar.archive,
        parquets=parquets,
    )


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def serve_tiny(server, tiny, monkeypatch):
    """The small CIFAR-10 on the local server, as both of the sources."""
    server.files["/official.tar.gz"] = tiny.archive
    official = remote.RemoteFile(
        f"{server.url}/official.tar.gz", tiny.archive_name, len(tiny.archive)
    )
    copies = []
    for split, name in PARQUETS.items():
        data = server.files[f"/{name}"] = tiny.parquets[split]
        copies.append(
            remote.RemoteFile(f"{server.url}/{name}", f"cifar10/plain_text/{name}", len(data))
        )
    sources = {
        "official": remote.Source("official", (official,)),
        "copy": remote.Source("copy", tuple(copies)),
    }
    change(monkeypatch, sources=tuple(sources.values()))
    return sources

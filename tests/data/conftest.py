"""Fixtures of the data tests: a small CIFAR-10 in every form, and a local server."""

import hashlib
import io
import pickle
import tarfile
import types

import numpy as np
import pytest
from copies import Server, md5, parquet_bytes

from cvattn.data import cifar10, cifar10_files, download

TRAIN, TEST = 50, 10


@pytest.fixture(autouse=True)
def _no_cache_no_network(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("CVATTN_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("CVATTN_OFFLINE", raising=False)
    monkeypatch.setattr(cifar10, "SOURCES", ())


@pytest.fixture
def tiny(monkeypatch):
    """A CIFAR-10 of 50 + 10 images as bytes of every form; the expected hashes are its own."""
    from torchvision.datasets import CIFAR10

    rng = np.random.default_rng(0)
    pixels = {
        "train": rng.integers(0, 256, (TRAIN, 32, 32, 3), dtype=np.uint8),
        "test": rng.integers(0, 256, (TEST, 32, 32, 3), dtype=np.uint8),
    }
    labels = {"train": np.arange(TRAIN) % 10, "test": np.arange(TEST)[::-1] % 10}

    def batch(split, part):
        data = pixels[split][part].transpose(0, 3, 1, 2).reshape(-1, 3072)
        return pickle.dumps({"data": data, "labels": labels[split][part].tolist()}, protocol=2)

    batches = {f"data_batch_{i + 1}": batch("train", slice(i * 10, i * 10 + 10)) for i in range(5)}
    batches["test_batch"] = batch("test", slice(None))
    batches["batches.meta"] = pickle.dumps({"label_names": list(cifar10.CLASSES)}, protocol=2)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in batches.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    parquets = {s: parquet_bytes(pixels[s], labels[s]) for s in pixels}

    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(buffer.getvalue()))
    monkeypatch.setattr(
        CIFAR10, "train_list", [[n, md5(d)] for n, d in batches.items() if n.startswith("data")]
    )
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5(batches["test_batch"])]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(batches["batches.meta"])}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    monkeypatch.setattr(cifar10_files, "COUNTS", {"train": TRAIN, "test": TEST})
    hashes = {s: hashlib.sha256(labels[s].astype(np.uint8).tobytes()).hexdigest() for s in labels}
    monkeypatch.setattr(cifar10_files, "LABEL_HASHES", hashes)
    official = hashlib.sha256(pixels["test"].tobytes()).hexdigest()
    monkeypatch.setattr(cifar10_files, "OFFICIAL_PIXELS", official)
    monkeypatch.setattr(cifar10, "VAL", 10)
    return types.SimpleNamespace(
        pixels=pixels,
        labels=labels,
        batches=batches,
        archive=buffer.getvalue(),
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
    official = download.RemoteFile(
        f"{server.url}/official.tar.gz", cifar10_files.ARCHIVE, len(tiny.archive)
    )
    copies = []
    for split, name in cifar10_files.PARQUETS.items():
        data = server.files[f"/{name}"] = tiny.parquets[split]
        copies.append(
            download.RemoteFile(f"{server.url}/{name}", f"cifar10/plain_text/{name}", len(data))
        )
    sources = {
        "official": download.Source("official", (official,)),
        "copy": download.Source("copy", tuple(copies)),
    }
    monkeypatch.setattr(cifar10, "SOURCES", tuple(sources.values()))
    return sources

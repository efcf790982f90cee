"""The cache of decoded pixels: what is damaged, foreign or half written is never believed."""

import hashlib
import os
import random
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cvattn.data.cache import cached

SHAPES = {"train": (7, 3, 5, 2), "test": (3, 3, 5, 2)}


def pixels() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    return {name: rng.integers(0, 256, shape, np.uint8) for name, shape in SHAPES.items()}


class Rebuilt(Exception):
    pass


class Cache:
    """A cache in ``folder`` of what ``make`` returns for one file, and how often it was called."""

    def __init__(self, folder: Path):
        self.source, self.made, self.arrays = folder / "source", 0, pixels()
        self.source.write_bytes(b"a file")

    def make(self):
        self.made += 1
        return self.arrays

    def read(self, shapes=SHAPES, decoder="decoder 1", name="small"):
        self.made = 0
        arrays, _ = cached(name, [self.source], decoder, shapes, self.make)
        assert arrays.keys() == shapes.keys()
        for name in arrays:
            assert np.array_equal(arrays[name], self.arrays[name])
            assert arrays[name].flags.writeable  # torch wants memory of its own
        return self.made == 0

    @property
    def file(self) -> Path:
        (found,) = Path(os.environ["CVATTN_CACHE"]).iterdir()
        return found


@pytest.fixture
def cache(tmp_path):
    cache = Cache(tmp_path)
    assert not cache.read()
    assert cache.read()
    return cache


def test_any_flipped_bit_is_noticed(cache):
    good = cache.file.read_bytes()
    rng = random.Random(20261125)
    places = [*range(8 * 80), *(rng.randrange(8 * len(good)) for _ in range(5000))]

    def give_up():
        raise Rebuilt  # and so is not written

    path = cache.file
    with path.open("r+b", buffering=0) as file:
        for place in places:
            byte, bit = divmod(place, 8)
            os.pwrite(file.fileno(), bytes([good[byte] ^ 1 << bit]), byte)
            with pytest.raises(Rebuilt):
                cached("small", [cache.source], "decoder 1", SHAPES, give_up)
            os.pwrite(file.fileno(), good[byte : byte + 1], byte)
    assert cache.read()
    path.write_bytes(good[:40] + bytes([good[40] ^ 4]) + good[41:])
    assert not cache.read()
    assert path.read_bytes() == good


def test_a_cut_longer_or_foreign_file_is_made_anew(cache):
    good = cache.file.read_bytes()
    wrong = [good[:size] for size in range(0, len(good), 7)]
    wrong += [good + b"\0", b"nonsense", good[::-1], bytes(len(good))]
    for content in wrong:
        cache.file.write_bytes(content)
        assert not cache.read()
    assert cache.read()


def test_the_sum_is_of_names_shapes_decoder_and_files_too(cache):
    """A file that is whole and holds something else: of as many bytes, so that only a sum tells."""
    body = cache.file.read_bytes()[32:]
    for content in (hashlib.sha256(body).digest() + body, hashlib.sha256(b"").digest() + body):
        cache.file.write_bytes(content)
        assert not cache.read()
    train = cache.arrays.pop("train")
    cache.arrays = {"TRAIN": train, **cache.arrays}
    assert not cache.read({"TRAIN": SHAPES["train"], "test": SHAPES["test"]})
    cache.arrays["TRAIN"] = train.reshape(7, 3, 2, 5)
    turned = {"TRAIN": (7, 3, 2, 5), "test": SHAPES["test"]}
    assert not cache.read(turned)
    assert cache.read(turned)
    assert not cache.read(turned, decoder="decoder 2")
    cache.source.write_bytes(b"another file")
    assert not cache.read(turned, decoder="decoder 2")


def test_arrays_that_are_not_what_was_said_are_refused(cache):
    for wrong in (
        {"train": cache.arrays["train"]},
        cache.arrays | {"test": cache.arrays["test"].astype(np.int8)},
        cache.arrays | {"test": cache.arrays["test"][:2]},
    ):
        with pytest.raises(ValueError, match=r"expected uint8 arrays of .*'test': "):
            cached("other", [cache.source], "decoder 1", SHAPES, lambda wrong=wrong: wrong)


def test_what_cannot_be_a_cache_is_no_error(cache, monkeypatch):
    file = cache.file
    file.unlink()
    file.mkdir()
    assert not cache.read()
    monkeypatch.setenv("CVATTN_CACHE", str(cache.source / "below a file"))
    assert not cache.read()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_umask_says_who_may_read_it(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        cache = Cache(tmp_path)
        cache.read()
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.file.stat().st_mode) == mode


# Stops in the middle of the writing: says so, and waits.
WRITER = """
import sys
from pathlib import Path
import numpy as np
from cvattn.data import cache
hold = cache._hold
def slow(file):
    hold(file)
    print("writing", flush=True)
    sys.stdin.readline()
cache._hold = slow
import cvattn.inference, cvattn.data.image_files, cvattn.data.sequences.line_files
assert "pytorch_lightning" not in sys.modules  # who only reads a file does not wait for it
rng = np.random.default_rng(4)
shapes = {"train": (7, 3, 5, 2), "test": (3, 3, 5, 2)}
arrays = {name: rng.integers(0, 256, shape, np.uint8) for name, shape in shapes.items()}
cache.cached("small", [Path(sys.argv[1])], "decoder 1", shapes, lambda: arrays)
print("done", flush=True)
"""


def start_writing(source: Path) -> subprocess.Popen:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(source)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout.readline() == "writing\n"
    return writer


@pytest.mark.slow
def test_two_processes_at_once_and_what_a_killed_one_leaves(tmp_path):
    cache = Cache(tmp_path)
    folder = Path(os.environ["CVATTN_CACHE"])
    other = folder / "somebody's.tmp"
    other.write_bytes(b"not ours")
    writer = start_writing(cache.source)
    (half,) = folder.glob("small*.tmp")
    assert not cache.read()  # and leaves the other's file alone
    assert half.exists()
    assert writer.communicate("\n", timeout=60)[0] == "done\n"
    assert not half.exists()
    assert cache.read()

    cache.source.write_bytes(b"changed")
    writer = start_writing(cache.source)
    (half,) = folder.glob("small*.tmp")
    writer.send_signal(signal.SIGKILL)
    writer.communicate(timeout=60)
    assert half.exists()
    assert not cache.read()
    assert not half.exists()
    assert cache.read()
    assert other.read_bytes() == b"not ours"
    assert len(list(folder.iterdir())) == 2

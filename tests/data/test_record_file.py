"""The file of data.hold=mapped: what is damaged, foreign or half written is never believed."""

import os
import random

import numpy as np
import pytest

from cvattn.data import DataError
from cvattn.data.images.record_file import DamagedError, RecordFile, read_facts, write_records

SHAPES = [(5, 7, 3), (11, 3, 3), (1, 1, 3), (13, 2, 1)]


def records():
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, shape, np.uint8) for shape in SHAPES]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "some.images"
    write_records(path, {"key": "α", "bad": [[1, "why"]]}, iter(records()))
    return path


def test_what_is_written_is_read(path):
    file = RecordFile(path)
    assert len(file) == 4
    assert file.facts == read_facts(path) == {"key": "α", "bad": [[1, "why"]]}
    for _ in range(2):
        for at, expected in enumerate(records()):
            assert np.array_equal(file[at], expected)
            assert file[at].flags.writeable  # torch wants memory of its own
    assert list(map(tuple, file.shapes)) == SHAPES
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_facts_are_looked_at_when_the_pictures_are_written(tmp_path):
    facts = {"count": 0}

    def pictures():
        for pixels in records():
            facts["count"] += 1
            yield pixels

    write_records(tmp_path / "a.images", facts, pictures())
    assert read_facts(tmp_path / "a.images") == {"count": 4}


def read_all(path):
    file = RecordFile(path)
    return [file[at] for at in range(len(file))]


def test_any_flipped_bit_is_noticed_before_it_is_used(path):
    """At the start in what says what there is; when it is first read in a picture."""
    good = path.read_bytes()
    rng = random.Random(5)
    with path.open("r+b", buffering=0) as file:
        for place in [*range(64 * 8), *(rng.randrange(64 * 8, 8 * len(good)) for _ in range(500))]:
            byte, bit = divmod(place, 8)
            os.pwrite(file.fileno(), bytes([good[byte] ^ 1 << bit]), byte)
            with pytest.raises((DamagedError, DataError)):
                read_all(path)
            os.pwrite(file.fileno(), good[byte : byte + 1], byte)
    assert len(read_all(path)) == 4


def test_damage_in_a_picture_is_told_with_the_way_out_and_the_others_are_read(path):
    content = bytearray(path.read_bytes())
    content[64 + 5 * 7 * 3 + 4] ^= 1  # of the second picture
    path.write_bytes(content)
    file = RecordFile(path)
    assert np.array_equal(file[0], records()[0])
    with pytest.raises(DataError, match=r"picture 1 in .*some.images is damaged .*--clean some"):
        file[1]
    with pytest.raises(DataError):  # and again
        file[1]
    assert np.array_equal(file[3], records()[3])


def test_a_cut_longer_or_foreign_file_is_refused(path, tmp_path):
    good = path.read_bytes()
    for content in [good[: len(good) * part // 17] for part in range(17)] + [
        *(good + b"\0", b"nonsense" * 50, bytes(len(good)), good.replace(b"images 1", b"images 2"))
    ]:
        path.write_bytes(content)
        with pytest.raises(DamagedError):
            RecordFile(path)


def test_a_file_that_is_cut_while_it_is_read_is_an_error_and_no_sigbus(path):
    file = RecordFile(path)
    assert np.array_equal(file[3], records()[3])
    os.truncate(path, 70)
    with pytest.raises(DataError, match="is damaged"):
        file[3]


def test_a_removed_file_is_read_to_the_end(path):
    file = RecordFile(path)
    path.unlink()
    assert np.array_equal(file[1], records()[1])


def test_what_fails_half_way_leaves_nothing(tmp_path):
    def pictures():
        yield from records()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(tmp_path / "a.images", {}, pictures())
    assert list(tmp_path.iterdir()) == []


def test_files_are_closed_with_the_last_that_uses_them(path):
    open_before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for _ in range(5):
        RecordFile(path)
    if open_before is None:
        pytest.skip("no /proc here")
    assert len(os.listdir("/proc/self/fd")) == open_before

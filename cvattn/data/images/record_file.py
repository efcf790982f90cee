"""Decoded pictures in one file of the cache, for ``data.hold=mapped``: written once, read by all.

The file is a header of 64 bytes (a magic number, where the index lies, the sha256 of the index),
the pixels of the pictures one after another, and the index: JSON that says what the pixels are of,
and for each picture its place, height, width, channels and CRC-32, int64 (N, 5).

Whole or not there: it gets its name when it is complete and on the disk. At the start its length,
the index and the key are checked, and each picture's sum when it is first read by a process; so
nothing is read twice, and a start costs the index alone. Caught so: a file that was cut, of other
pictures, of another version, and any changed bit in what is used, before it is used. Not caught: a
change after that, under a process that runs.

It is read by ``pread``: the system keeps the pages that are used for all processes together, none
of them counts them as its own, and a disk that fails is an error and no SIGBUS.
"""

import hashlib
import json
import os
import struct
import weakref
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from cvattn.data.cache import whole
from cvattn.data.checks import DataError

_MAGIC = b"cvattn images 1\n"
_HEADER = struct.Struct("<16sQQ32s")  # magic, where the index begins, its length, its sha256

_LENGTH = struct.Struct("<Q")
_COLUMNS = 5


class DamagedError(ValueError):
    """A file in the cache is not what was written; the text says what is wrong with it."""


class RecordFile:
    """The pictures of a file, uint8 (h, w, C) each, by their positions; for reading.

    Threads may share it.

    Args:
        path: the file.

    Attributes:
        facts: what was written with the pictures.
        shapes: (height, width, channels) of each, int64 (N, 3).

    Raises:
        DamagedError: it is not whole, or not such a file.
        OSError: there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self.facts, rows = _read_index(file)
            # Of its own, and closed with the last that uses these pictures.
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)
        self.shapes = rows[:, 1:4]
        self._places, self._sums = rows[:, 0], rows[:, 4]
        self._checked = np.zeros(len(rows), bool)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, at: int) -> np.ndarray:
        """The pixels of a picture; DataError if they are damaged."""
        pixels = np.empty(tuple(self.shapes[at]), np.uint8)
        try:
            count = os.preadv(self._file, [pixels.data.cast("B")], int(self._places[at]))
        except OSError as error:
            raise self._broken(at, error.strerror or str(error)) from error
        if count != pixels.size:
            raise self._broken(at, f"{count} of {pixels.size} bytes")
        if not self._checked[at]:
            if zlib.crc32(pixels.data) != self._sums[at]:
                raise self._broken(at, "not what was written")
            self._checked[at] = True
        return pixels

    def _broken(self, at: int, why: str) -> DataError:
        return DataError(
            f"picture {at} in {self.path} is damaged ({why}); remove the file, it is made anew: "
            f"python -m cvattn cache --clean {self.path.stem}"
        )


def write_records(path: Path, facts: Mapping[str, Any], pictures: Iterable[np.ndarray]) -> None:
    """Write pictures, uint8 (h, w, C), to a file that is there when it is whole.

    Args:
        path: in the cache folder.
        facts: plain values that say what they are; looked at when the last picture has been
            written.
        pictures: the pixels of each.

    Raises:
        OSError: it cannot be written; nothing is left.
    """
    with whole(path) as out:
        out.write(bytes(_HEADER.size))
        rows = []
        for pixels in pictures:
            pixels = np.ascontiguousarray(pixels)
            rows.append((out.tell(), *pixels.shape, zlib.crc32(pixels.data)))
            out.write(pixels.data)
        words = json.dumps(facts).encode()
        table = np.array(rows, np.int64).reshape(-1, _COLUMNS)
        index = _LENGTH.pack(len(words)) + words + table.tobytes()
        place = out.tell()
        out.write(index)
        out.seek(0)
        digest = hashlib.sha256(index).digest()
        out.write(_HEADER.pack(_MAGIC, place, len(index), digest))
        out.flush()
        os.fsync(out.fileno())


def read_facts(path: Path) -> dict[str, Any]:
    """What a file says of itself; errors as in :class:`RecordFile`."""
    with path.open("rb") as file:
        return _read_index(file)[0]


def _read_index(file: IO[bytes]) -> tuple[dict[str, Any], np.ndarray]:
    size = os.fstat(file.fileno()).st_size
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise DamagedError("it does not begin as such a file does")
    _, place, length, digest = _HEADER.unpack(header)
    if place + length != size:
        raise DamagedError(f"it has {size:,} bytes, and {place + length:,} were written")
    file.seek(place)
    index = file.read(length)
    if hashlib.sha256(index).digest() != digest:
        raise DamagedError("its index was changed")
    (words,) = _LENGTH.unpack_from(index)
    table = np.frombuffer(index, np.int64, offset=_LENGTH.size + words)
    return json.loads(index[_LENGTH.size :][:words]), table.reshape(-1, _COLUMNS)

"""Where pictures come from: one part of a data set as files, opened when they are asked for.

A source decodes nothing: what it gives is read by :mod:`cvattn.data.image_files`, the one decoder,
so that the same file means the same wherever it lies. How pictures are held (in memory, in a file,
or not at all) is :mod:`cvattn.data.images.holding`'s matter, whatever the source.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Protocol

import torch
from torch import Tensor

from cvattn.data.checks import DataError


class ImageSource(Protocol):
    """The pictures of one part (training, say), of any size, in a fixed order.

    Attributes:
        labels: int64 (N,), or float32 (N, K) of 0 and 1 where a picture has several.
    """

    labels: Tensor

    def __len__(self) -> int: ...

    def file(self, index: int) -> str | IO[bytes]:
        """What :func:`cvattn.data.image_files.read_picture` is to read: a path, or encoded bytes.

        Called by several threads at once.

        Raises:
            ImageError: it cannot be had; the text says why, and not which picture it is.
        """
        ...

    def name(self, index: int) -> str:
        """How the picture is called in messages: a path, or a shard and a key in it."""
        ...

    def identity(self, *, times: bool) -> bytes:
        """A digest of which pictures these are, in their order: their names and sizes in bytes.

        Args:
            times: also when they were last changed. With times it is the key of decoded pixels;
                without, of the data itself: a copy on another machine has the same.

        Raises:
            DataError: one of them is gone.
        """
        ...


class FileSource:
    """Image files below a folder.

    Args:
        root: the folder; in identities, files are named from here.
        paths: the files.
        labels: as in :class:`ImageSource`, one for each.
    """

    def __init__(self, root: Path, paths: Sequence[Path], labels: Tensor) -> None:
        if len(paths) != len(labels):
            raise ValueError(f"{len(paths)} files have {len(labels)} labels")
        self.root = root
        self.labels = labels
        self._paths = [os.fspath(path) for path in paths]  # a Path takes several times the memory

    def __len__(self) -> int:
        return len(self._paths)

    def file(self, index: int) -> str:
        return self._paths[index]

    def name(self, index: int) -> str:
        return self._paths[index]

    def identity(self, *, times: bool) -> bytes:
        digest, below = hashlib.sha256(), os.path.join(self.root, "")
        for path in self._paths:
            try:
                facts = os.stat(path)
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}") from error
            name = os.fsencode(path.removeprefix(below))
            changed = facts.st_mtime_ns if times else 0
            digest.update(b"%d %d %d " % (len(name), facts.st_size, changed) + name)
        return digest.digest()


class Chosen:
    """Some of the pictures of a source, as a source.

    Args:
        source: whose pictures they are.
        positions: of the pictures in ``source``, int64 (n,).
    """

    def __init__(self, source: ImageSource, positions: Tensor) -> None:
        self.source = source
        self.positions = positions
        self.labels = source.labels[positions]

    def __len__(self) -> int:
        return len(self.positions)

    def file(self, index: int) -> str | IO[bytes]:
        return self.source.file(int(self.positions[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.positions[index]))

    def identity(self, *, times: bool) -> bytes:
        whole = self.source.identity(times=times)
        chosen = self.positions.to(torch.int64).numpy().tobytes()
        return hashlib.sha256(whole + chosen).digest()

"""The pictures of a split of a `datasets` data set, as a source: by row, still encoded."""

import hashlib
import io
import json
import os
from typing import IO, Any

import numpy as np
from torch import Tensor

from cvattn.data.checks import DataError
from cvattn.data.image_files import ImageError


class HubSource:
    """The pictures of one split, in the order of its rows.

    Decoded by :mod:`cvattn.data.image_files` as those of a folder are, not by ``datasets``, which
    neither turns a picture upright nor lays a transparent one on white.

    Args:
        split: a ``datasets.Dataset``.
        column: the column of pictures, a struct of ``bytes`` and ``path``.
        labels: int64 (N,).
        where: data set and split, for messages.
    """

    def __init__(self, split: Any, column: str, labels: Tensor, where: str) -> None:
        self.labels = labels
        self._rows = split.select_columns([column]).with_format("arrow")
        self._column = column
        self._files = [each["filename"] for each in split.cache_files]
        self._where = where

    def __len__(self) -> int:
        return len(self._rows)

    def file(self, index: int) -> str | IO[bytes]:
        row = self._rows[index][self._column][0].as_py()
        if row is None or (row["bytes"] is None and row["path"] is None):
            raise ImageError("the row has no picture")
        return row["path"] if row["bytes"] is None else io.BytesIO(row["bytes"])

    def name(self, index: int) -> str:
        return f"{self._where}, row {index}"

    def identity(self, *, times: bool) -> bytes:
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        for table in self._rows.iter(batch_size=1000):
            self._add(digest, table[self._column].combine_chunks(), times)
        if times:
            try:
                facts = [(p, os.stat(p).st_size, os.stat(p).st_mtime_ns) for p in self._files]
            except OSError as error:
                raise DataError(f"{self._where}: {error.filename}: {error.strerror}") from error
            digest.update(json.dumps(facts).encode())
        return digest.digest()

    def _add(self, digest: Any, column: Any, times: bool) -> None:
        """The sizes of some pictures; where they are files of their own, those of the files."""
        import pyarrow.compute

        sizes = pyarrow.compute.binary_length(column.field("bytes"))
        digest.update(np.asarray(sizes.fill_null(-1)).astype(np.int64).tobytes())
        if not sizes.null_count:
            return
        for path, size in zip(column.field("path").to_pylist(), sizes.to_pylist(), strict=True):
            if size is None and path is not None:
                try:
                    facts = os.stat(path)
                except OSError:
                    continue  # it is named when it is read
                changed = facts.st_mtime_ns if times else 0
                name = os.fsencode(os.path.basename(path))
                digest.update(b"%d %d %d " % (len(name), facts.st_size, changed) + name)

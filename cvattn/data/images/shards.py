"""The pictures of shards, as a source: any of them at any time, in a fixed order."""

import hashlib
import io
from collections.abc import Sequence
from typing import IO

import numpy as np
import torch
from torch import Tensor

from cvattn.data.checks import DataError
from cvattn.data.images.label_names import LabelNames
from cvattn.data.images.shard_index import ShardIndex
from cvattn.data.images.shard_places import Shard
from cvattn.system import printable


class ShardSource:
    """The pictures of shards, in the order of the shards and of the samples in them.

    Args:
        shards, indices: the shards and what is in each.
        names: the classes.

    Attributes:
        labels: int64 (N,).
        shard_of: the shard of each picture, int64 (N,).

    Raises:
        DataError: a label that means no class; the text names samples.
    """

    def __init__(
        self, shards: Sequence[Shard], indices: Sequence[ShardIndex], names: LabelNames
    ) -> None:
        self._shards, self._indices = list(shards), list(indices)
        counts = [len(index.keys) for index in indices]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self.shard_of = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        self.labels = self._labels(names)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def file(self, index: int) -> IO[bytes]:
        shard, at = self._place(index)
        index_ = self._indices[shard]
        return io.BytesIO(self._shards[shard].read(int(index_.offsets[at]), int(index_.sizes[at])))

    def name(self, index: int) -> str:
        shard, at = self._place(index)
        return f"{self._shards[shard].address}: {self._indices[shard].keys[at]}"

    def key(self, index: int) -> str:
        """The sample's key in its shard."""
        shard, at = self._place(index)
        return self._indices[shard].keys[at]

    def identity(self, *, times: bool) -> bytes:
        digest = hashlib.sha256()
        for shard, index in zip(self._shards, self._indices, strict=True):
            facts = [shard.name, str(len(index.keys)), shard.changed if times else ""]
            digest.update("\0".join(facts).encode("utf-8", "surrogateescape"))
            for array in (index.keys.ends, index.keys.joined, index.sizes):
                digest.update(array.tobytes())
        return digest.digest()

    def _place(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard, index - int(self._starts[shard])

    def _labels(self, names: LabelNames) -> Tensor:
        found, strange = [], []
        for shard, index in zip(self._shards, self._indices, strict=True):
            codes = [names.index(text) for text in index.texts]
            for at, code in enumerate(codes):
                if code is None:
                    first = index.keys[int((index.labels == at).argmax())]
                    what = names.strange(index.texts[at])
                    strange.append(f"{shard.address}: {printable(first)} has {what}")
            found.append(np.array([-1 if c is None else c for c in codes])[index.labels])
        if strange:
            raise DataError(
                f"{len(strange)} labels mean no class: {'; '.join(strange[:3])}. The classes are "
                "those of data.classes, or of the training samples"
            )
        return torch.from_numpy(np.concatenate(found).astype(np.int64))

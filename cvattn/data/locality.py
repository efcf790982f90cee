"""An order of training that reads a few files at a time: for samples that lie in large files."""

from dataclasses import dataclass

from torch import Tensor

from cvattn.data.counter import Stream, permutation


@dataclass(frozen=True)
class Locality:
    """Samples mixed among a few files at a time; which files go together is drawn each epoch.

    Attributes:
        file_of: the file of each sample, int64 (N,), of 0..F-1.
        at_once: files whose samples are mixed; 0: all, which is a plain permutation.
    """

    file_of: Tensor
    at_once: int

    def order(self, seed: int, epoch: int) -> Tensor:
        """All positions 0..N-1, int64: a function of (seed, epoch) and of which file has what.

        With no more files than ``at_once`` it is :func:`cvattn.data.counter.permutation`'s.
        """
        mixed = permutation(seed, epoch, len(self.file_of))
        files = int(self.file_of.max()) + 1 if len(self.file_of) else 0
        if not 0 < self.at_once < files:
            return mixed
        turn = permutation(seed, epoch, files, Stream.FILES).argsort()
        group = turn[self.file_of] // self.at_once
        return mixed[group[mixed].argsort(stable=True)]

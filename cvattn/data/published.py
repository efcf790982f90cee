"""A published data set in a data root: what is there is checked, what is not is downloaded."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cvattn.data import download, remote
from cvattn.data.checks import DataError
from cvattn.system import is_offline

Copy = TypeVar("Copy")  # of the data set, on disk


@dataclass(frozen=True)
class Published:
    """What the user is told of a data set, and where it is downloaded from.

    Attributes:
        title: for people.
        root: the data root, in which files are looked for and into which they are downloaded.
        to_do: what a user without the data can do.
        sources: servers to download from.
    """

    title: str
    root: Path
    to_do: str
    sources: Sequence[remote.Source]

    def obtain(
        self,
        find: Callable[[], Copy | None],
        problem: Callable[[Copy], tuple[Path, str] | None],
    ) -> None:
        """Check what is there, download what is not; one process at a time.

        Args:
            find: the best copy, by names alone.
            problem: the first damaged file of a copy and what is wrong with it.

        Raises:
            DataError: a damaged file of the user's own (it is not touched), no network (within 20
                seconds, with what was tried), or ``CVATTN_OFFLINE=1`` and nothing to read.
        """
        found = find()
        if found is not None:
            if (wrong := problem(found)) is None:
                return
            _refuse_unless_ours(*wrong)
        elif is_offline():
            raise DataError(
                f"{self.title} is not in {self.root} and CVATTN_OFFLINE forbids downloads; "
                + self.to_do
            )
        with download.lock(self.root):
            # Another process may have finished while this one waited. Twice: a fresh download
            # that is damaged as well is fetched once more.
            for _ in range(3):
                found = find()
                if found is None:
                    self._fetch_fastest()
                elif (wrong := problem(found)) is None:
                    return
                else:
                    kept = download.set_aside(_refuse_unless_ours(*wrong))
                    print(f"set aside as damaged: {kept}", file=sys.stderr)
            found = find()
            if found is None or problem(found) is not None:
                raise DataError(f"what the server sends is not {self.title}; {self.to_do}")

    def _fetch_fastest(self) -> None:
        best, tried = promise(self.sources)
        if best is None:
            raise DataError(
                f"{self.title} is not in {self.root} and no server answered (tried {tried}); "
                + self.to_do
            )
        for file in best.source.files:
            if not (self.root / file.path).exists():
                download.fetch(file, self.root)


def promise(sources: Sequence[remote.Source]) -> tuple[remote.Promise | None, str]:
    """The fastest source that answers within a few seconds, and what was tried, in words."""
    promises = remote.probe(sources)
    tried = "; ".join(
        f"{p.source.files[0].url}: {p.problem or f'about {p.seconds:.0f} s'}" for p in promises
    )
    answered = [p for p in promises if p.seconds is not None]
    return min(answered, key=lambda p: p.seconds or 0.0, default=None), tried


def _refuse_unless_ours(path: Path, what: str) -> Path:
    """The damaged file, if it may be fetched again; DataError if not."""
    if not download.is_ours(path):
        raise DataError(
            f"{path} {what}; it is not a file that we downloaded, so it stays as it is: "
            "replace or remove it"
        )
    if is_offline():
        raise DataError(f"{path} {what}; CVATTN_OFFLINE forbids fetching it again: remove it")
    return path

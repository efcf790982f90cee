"""What the cache folder holds, for people: ``cvattn cache``."""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cvattn.data.cache import IMAGES, INDEX, KINDS, SHARD, SHARDS, cache_folder, sweep
from cvattn.data.images.record_file import DamagedError, read_facts


class Kept(NamedTuple):
    """A file of decoded pixels, or the folder of what is kept of shards.

    Attributes:
        path: the file; its stem is its name.
        size: in bytes.
        used: when it was last used, in seconds as :func:`time.time` has them.
        source: of what: where the data was, and which part; "" where the file does not say.
    """

    path: Path
    size: int
    used: float
    source: str


def kept_files() -> list[Kept]:
    """What is in the cache folder, the last used first.

    What killed processes left there half written is removed.
    """
    folder = cache_folder()
    if folder is None or not folder.is_dir():
        return []
    sweep(folder)
    found = []
    for path in (path for kind in KINDS for path in folder.glob(f"*{kind}")):
        with suppress(OSError):  # gone meanwhile
            facts = path.stat()
            found.append(Kept(path, facts.st_size, facts.st_mtime, _source(path)))
    if (shards := _shards(folder / SHARDS)) is not None:
        found.append(shards)
    return sorted(found, key=lambda kept: -kept.used)


def remove(kept: Kept) -> None:
    """Remove it; a process that reads a file keeps it until it ends. OSError if it cannot be.

    Copies of shards are opened for each picture: a run that reads them ends with an error.
    """
    if kept.path.is_dir():
        shutil.rmtree(kept.path)
        return
    kept.path.unlink(missing_ok=True)
    lock = kept.path.with_name(f"{kept.path.name}.lock")
    lock.unlink(missing_ok=True)


def _shards(folder: Path) -> Kept | None:
    """One row for all: there may be thousands."""
    facts = []
    for path in folder.glob("*"):
        with suppress(OSError):
            facts.append((path.suffix, path.stat()))
    if not facts:
        return None
    counts = [sum(suffix == kind for suffix, _ in facts) for kind in (SHARD, INDEX)]
    return Kept(
        folder,
        sum(fact.st_size for _, fact in facts),
        max(fact.st_mtime for _, fact in facts),
        f"{counts[0]} copies and {counts[1]} indices of shards",
    )


def _source(path: Path) -> str:
    if path.suffix != IMAGES:
        return ""
    try:
        facts = read_facts(path)
        return f"{facts['source']}, {facts['part']}"
    except (DamagedError, KeyError) as error:
        return f"damaged: {error}"

"""The parquet files of a split, in the places and under the names that the Hub's copies have."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cvattn.data.checks import DataError

# train-00000-of-00002.parquet; in older uploads train-00000-of-00002-b42cd24ec6.parquet.
_NUMBERED = re.compile(r"(\w+)-(\d+)-of-(\d+)(?:-[0-9a-f]+)?\.parquet")
# The Hub's own conversion: train/0000.parquet.
_CONVERTED = re.compile(r"(\d+)\.parquet")


class Parts(NamedTuple):
    """The parts of a split that lie in a folder, in order.

    Attributes:
        missing: the name of a part that is not there although others are; "" if none is.
    """

    paths: tuple[Path, ...]
    missing: str = ""


def parts_of(place: Path, split: str) -> Parts:
    """The parquet files of ``split`` in ``place``, by their names; no paths if there are none.

    Raises:
        DataError: there are two complete sets of them.
    """
    sets = [*_numbered(place, split), *_converted(place / split)]
    whole = [each for each in sets if not each.missing]
    if len(whole) > 1:
        firsts = " and ".join(str(each.paths[0].relative_to(place)) for each in whole)
        raise DataError(f"{place} has {split!r} more than once ({firsts}); leave one of them there")
    return next(iter(whole or sets), Parts(()))


def hub_places(base: Path, name: str) -> list[Path]:
    """The folders in which a data set ``name`` may lie below ``base``, itself the first.

    Beside ``plain_text/`` and ``data/`` these are the snapshots of a Hub cache: of
    ``datasets--OWNER--NAME`` the one that ``refs/main`` names, or the only one.
    """
    bases = [
        base,
        *sorted(base.glob(f"datasets--{name}")),
        *sorted(base.glob(f"datasets--*--{name}")),
    ]
    found = []
    for each in bases:
        snapshot = _snapshot(each)
        for place in [each] if snapshot is None else [each, snapshot, snapshot / name]:
            found += [place, place / "plain_text", place / "data"]
    return found


def _numbered(place: Path, split: str) -> list[Parts]:
    sets: dict[int, dict[int, Path]] = {}
    for path in _files(place):
        match = _NUMBERED.fullmatch(path.name)
        if match is None or match[1] != split:
            continue
        parts = sets.setdefault(int(match[3]), {})
        if (other := parts.setdefault(int(match[2]), path)) != path:
            raise DataError(f"{path} and {other.name} are the same part of {split!r}; remove one")
    return [
        _whole(parts, range(count), f"{split}-{{:05}}-of-{count:05}.parquet")
        for count, parts in sorted(sets.items())
    ]


def _converted(folder: Path) -> list[Parts]:
    matches = [(_CONVERTED.fullmatch(path.name), path) for path in _files(folder)]
    parts = {int(match[1]): path for match, path in matches if match is not None}
    count = range(max(parts, default=-1) + 1)
    return [_whole(parts, count, f"{folder.name}/{{:04}}.parquet")] if parts else []


def _whole(parts: dict[int, Path], expected: Sequence[int], name: str) -> Parts:
    missing = next((name.format(at) for at in expected if at not in parts), "")
    return Parts(tuple(parts[at] for at in sorted(parts)), missing)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.parquet") if path.is_file())


def _snapshot(folder: Path) -> Path | None:
    snapshots = folder / "snapshots"
    there = sorted(path for path in snapshots.glob("*") if path.is_dir())
    main = folder / "refs" / "main"
    if main.is_file():
        there = [path for path in there if path.name == main.read_text().strip()]
    return there[0] if len(there) == 1 else None

"""A folder of class folders: which classes there are, and the image files of each."""

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cvattn.data.checks import DataError
from cvattn.data.image_files import SUFFIXES, image_files, is_hidden, left_out
from cvattn.data.split import held_out
from cvattn.system import printable

_MOST_NAMED = 5
_MOST_LISTED = 20


class Part(NamedTuple):
    """``train/``, ``val/`` or ``test/``.

    Attributes:
        classes: class name -> its image files, both sorted.
        left: what is not read: as :func:`image_files` says, and images of no class.
    """

    classes: dict[str, list[Path]]
    left: list[Path]


def part_of(root: Path, name: str) -> Part:
    """The class folders of ``root/name`` that have image files.

    Raises:
        DataError: no such folder, it or one in it cannot be read, or there is nothing in it; a
            class folder without image files in ``train/``.
    """
    folder = root / name
    if not folder.is_dir():
        _fail_for_missing(root, name)
    part = Part({}, [])
    try:
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                found = image_files(path)
                if is_hidden(path.name):
                    part.left.extend(found.paths)
                else:
                    part.classes[path.name] = found.paths
                part.left.extend(found.left)
            elif path.suffix.lower() in SUFFIXES:
                part.left.append(path)  # of no class
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be read: {error.strerror}") from error
    empty = [each for each, paths in part.classes.items() if not paths]
    if empty and (name == "train" or len(empty) == len(part.classes)):
        raise DataError(
            f"{folder} has no image files for {', '.join(empty)}; expected names that end in "
            f"{' '.join(sorted(SUFFIXES))}{_left(part)}"
        )
    for each in empty:  # to judge by, none is needed of every class
        del part.classes[each]
    needed = 2 if name == "train" else 1
    if len(part.classes) < needed:
        what = (
            f"only the class {next(iter(part.classes))!r}" if part.classes else "no class folders"
        )
        raise DataError(
            f"{folder} has {what}; expected a folder of images for each of 2 or more{_left(part)}"
        )
    return part


def _left(part: Part) -> str:
    return f" ({left_out(part.left)})" if part.left else ""


def _fail_for_missing(root: Path, name: str) -> None:
    if not root.is_dir():
        raise DataError(
            f"data.root={root} is not a folder; expected one with train/ and test/ in it"
        )
    there = sorted(path.name for path in root.iterdir() if path.is_dir())
    near = difflib.get_close_matches(name, [each.lower() for each in there], n=1)
    meant = [each for each in there if each.lower() in near]
    hint = f"; if {meant[0]!r} is meant, rename it to {name!r}" if meant else ""
    raise DataError(
        f"{root / name} is missing; expected train/ and test/ in {root}, with a folder of images "
        f"for each class; there are: {', '.join(there[:10]) or 'no folders'}{hint}"
    )


def for_validation(paths: Sequence[Path], folder: Path) -> set[Path]:
    """The share of a class that is held out: by a hash of the names, the same everywhere."""

    names = [os.fsencode(path.relative_to(folder.parent).as_posix()) for path in paths]
    return {paths[at] for at in held_out(names)}


def check_known(train: Sequence[str], part: Part, folder: Path) -> None:
    """Raise DataError if a part has classes that ``train/`` has not."""
    extra = sorted(set(part.classes) - set(train))
    if extra:
        missing = sorted(set(train) - set(part.classes))
        lacks = f"lacks {named(missing)} and " if missing else ""
        raise DataError(
            f"{folder} {lacks}has {named(extra)}, which train/ has not: the classes are those of "
            "train/"
        )


def notes_of(classes: Sequence[str], parts: Mapping[str, Part]) -> list[str]:
    """What is missing and what is passed over, for people."""
    notes = []
    for name, part in parts.items():
        if missing := [each for each in classes if each not in part.classes]:
            notes.append(f"{name}/ has no images of {named(missing)}")
    if left := [path for part in parts.values() for path in part.left]:
        notes.append(left_out(left))
    return notes


def named(names: Sequence[str]) -> str:
    """Some of the names, and how many more there are."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(map(printable, names[:_MOST_NAMED])) + more


def listed(bad: Sequence[tuple[Path | str, str]]) -> str:
    """A line for each file and what is wrong with it, of the first ones."""
    lines = "".join(f"\n  {printable(str(path))}: {what}" for path, what in bad[:_MOST_LISTED])
    more = len(bad) - _MOST_LISTED
    return lines + (f"\n  and {more} more" if more > 0 else "")

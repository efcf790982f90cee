"""Files that are whole or not there: what a run writes survives a kill and a full disk."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_PARTIAL = ".partial"


class CannotWrite(OSError):
    """A file could not be written; what was there before is whole."""


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of ``path`` once it is complete.

    It is written beside ``path`` (a rename is atomic within one file system only, so not in the
    temporary folder) and is on the disk before it gets its name.

    Raises:
        CannotWrite: no space, no permission and the like; ``path`` is as it was.
    """
    partial = path.with_name(f".{path.name}{_PARTIAL}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CannotWrite(
            f"cannot write {path}: {reason}. What was there before is as it was."
        ) from error
    finally:
        # After an error or a signal; a kill leaves it to remove_leftovers().
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """The folder, with those above it, if it is not there.

    Raises:
        CannotWrite: no permission, a file of that name, and the like.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"cannot make the folder {path}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """The text in UTF-8, as :func:`whole_file`."""
    with whole_file(path) as file:
        file.write(text.encode())


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writes have left in the folder and below it."""
    for path in folder.rglob(f".*{_PARTIAL}"):
        path.unlink(missing_ok=True)

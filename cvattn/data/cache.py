"""Decoded pixels kept in the user's cache folder, because decoding CIFAR-10 takes seconds.

``CVATTN_CACHE`` names another folder, or "off". A cache file is a sha256 and the pixels. The sum
is over what the pixels must be of (files, their sizes and times of change, decoder, names and
shapes) and over the pixels themselves: a file with any bit changed, of other files or of another
version is not believed, and made anew. There is no header that could be read wrongly. A cache that
cannot be written is no error.
"""

import hashlib
import json
import math
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np

Arrays = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]
PIXELS = ".pixels"  # small data sets, of a few MiB
IMAGES = ".images"  # data.hold=mapped
INDEX = ".index"  # where the pictures of a shard are
SHARD = ".shard"  # a copy of one on a server
KINDS = (PIXELS, IMAGES, INDEX, SHARD)
SHARDS = "shards"  # the folder in the cache folder with both of these


def cached(
    name: str, paths: Sequence[Path], decoder: str, shapes: Shapes, make: Callable[[], Arrays]
) -> tuple[Arrays, Path | None]:
    """What ``make()`` returned for these files the last time, or now.

    Args:
        name: begins the cache file's name.
        paths: the files that ``make`` reads.
        decoder: name and version of what decodes them; another one makes other pixels.
        shapes: of the arrays that ``make`` returns, by name.
        make: returns uint8 arrays.

    Returns:
        the arrays, and the cache file they came from (None: they were made now).
    """
    target = _target(name, paths)
    key = _key(paths, decoder, shapes)
    if target is not None:
        sweep(target.parent)
        if (known := _load(target, key, shapes)) is not None:
            mark_used(target)
            return known, target
    arrays = make()
    found = {each: array.shape for each, array in arrays.items()}
    if found != dict(shapes) or any(array.dtype != np.uint8 for array in arrays.values()):
        raise ValueError(f"expected uint8 arrays of {dict(shapes)}, make() returned {found}")
    if target is not None:
        _save(target, key, [arrays[each] for each in shapes])
    return arrays, None


def cache_folder() -> Path | None:
    """Where decoded pixels are kept; None: nowhere."""
    chosen = os.environ.get("CVATTN_CACHE", "")
    if chosen.lower() in ("off", "0", "no", "false"):
        return None
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cvattn"
        return Path(chosen).expanduser() if chosen else base
    except RuntimeError:  # no home folder
        return None


def _target(name: str, paths: Sequence[Path]) -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    # One cache file for each place, so that a changed data set replaces its old pixels.
    where = hashlib.sha256(b"\n".join(os.fsencode(path.resolve()) for path in paths)).hexdigest()
    return folder / f"{name}-{where[:16]}{PIXELS}"


def _key(paths: Sequence[Path], decoder: str, shapes: Shapes) -> bytes:
    facts = [(path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return json.dumps([2, decoder, facts, list(shapes.items())]).encode()


def _load(target: Path, key: bytes, shapes: Shapes) -> Arrays | None:
    sizes = [math.prod(shape) for shape in shapes.values()]
    digest = hashlib.sha256(key)
    length = digest.digest_size + sum(sizes)
    try:
        if target.stat().st_size != length:
            return None
        content = np.fromfile(target, np.uint8)
    except OSError:
        return None
    digest.update(content[digest.digest_size :].data)
    if len(content) != length or content[: digest.digest_size].tobytes() != digest.digest():
        return None
    parts = np.split(content[digest.digest_size :], np.cumsum(sizes)[:-1])
    return {
        name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def _save(target: Path, key: bytes, arrays: Sequence[np.ndarray]) -> None:
    digest = hashlib.sha256(key)
    pixels = [np.ascontiguousarray(array) for array in arrays]
    for array in pixels:
        digest.update(array.data)
    with suppress(OSError), whole(target) as out:
        out.write(digest.digest())
        for array in pixels:
            out.write(array.data)


@contextmanager
def whole(target: Path) -> Iterator[IO[bytes]]:
    """A binary file in the cache that gets its name once it is complete; OSError if it cannot.

    What a killed process leaves of it is removed by the next one that writes into the folder.
    """
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Plainly opened, unlike tempfile's: others may read it where the umask lets them.
        with temporary.open("x+b") as out:
            with suppress(OSError):  # a file system without locks
                _hold(out)
            yield out
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """While no other process makes that file; says so when it waits for one.

    Raises:
        OSError: the folder cannot be written to.
    """
    from filelock import FileLock, Timeout

    target.parent.mkdir(parents=True, exist_ok=True)
    guard = FileLock(target.with_name(f"{target.name}.lock"))
    try:
        guard.acquire(timeout=1)
    except Timeout:
        print(f"waiting: another process is writing {target}", file=sys.stderr, flush=True)
        guard.acquire()
    try:
        yield
    finally:
        guard.release()


def mark_used(path: Path) -> None:
    """Its time of change says when it was last used."""
    with suppress(OSError):  # somebody else's
        os.utime(path)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written: files that no process holds."""
    for path in (path for kind in KINDS for path in folder.glob(f"*{kind}.*.tmp")):
        with suppress(OSError), path.open("rb") as file:
            _hold(file)
            path.unlink()


def _hold(file: IO[bytes]) -> None:
    """Lock an open file until it is closed or its process ends; OSError if another has it."""
    try:
        import fcntl
    except ImportError:  # Windows removes no file that is open anyway
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

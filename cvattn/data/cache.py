"""Decoded pixels kept in the user's cache folder, because decoding CIFAR-10 takes seconds.

``CVATTN_CACHE`` names another folder, or "off". A cache file is believed only if it was made from
the same files (path, size, time of change) by the same decoder, and its checksums agree; anything
else is made anew. A cache that cannot be written is no error.
"""

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


def cached(
    name: str, paths: Sequence[Path], decoder: str, make: Callable[[], Arrays]
) -> tuple[Arrays, Path | None]:
    """What ``make()`` returned for these files the last time, or now.

    Args:
        name: begins the cache file's name.
        paths: the files that ``make`` reads.
        decoder: name and version of what decodes them; another one makes other pixels.
        make: returns named uint8 arrays.

    Returns:
        the arrays, and the cache file they came from (None: they were made now).
    """
    target = _target(name, paths)
    key = _key(paths, decoder)
    if target is not None and (known := _load(target, key)) is not None:
        return known, target
    arrays = make()
    if target is not None:
        _save(target, key, arrays)
    return arrays, None


def _target(name: str, paths: Sequence[Path]) -> Path | None:
    chosen = os.environ.get("CVATTN_CACHE", "")
    if chosen.lower() in ("off", "0", "no", "false"):
        return None
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cvattn"
    except RuntimeError:  # no home folder
        return None
    # One cache file for each place, so that a changed data set replaces its old pixels.
    where = hashlib.sha256("\n".join(str(path.resolve()) for path in paths).encode()).hexdigest()
    return (Path(chosen).expanduser() if chosen else base) / f"{name}-{where[:16]}.npz"


def _key(paths: Sequence[Path], decoder: str) -> str:
    facts = [(path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return f"1 {decoder} {facts}"


def _load(target: Path, key: str) -> Arrays | None:
    try:
        # The zip container checks each array's CRC-32 while reading; nothing is unpickled.
        with target.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            if str(file["key"]) != key:
                return None
            return {name: file[name] for name in file.files if name != "key"}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _save(target: Path, key: str, arrays: Arrays) -> None:
    temporary = ""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".tmp", delete=False) as out:
            temporary = out.name
            contents: dict[str, np.ndarray] = {"key": np.array(key), **arrays}
            np.savez(out, **contents)  # type: ignore[arg-type]
        os.replace(temporary, target)
    except OSError:
        if temporary:
            Path(temporary).unlink(missing_ok=True)

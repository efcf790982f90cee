"""``data.hold=mapped``: the file of the cache with a part's pictures, made where there is none."""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import features

from cvattn.data.cache import IMAGES, alone, cache_folder, mark_used, sweep
from cvattn.data.checks import DataError
from cvattn.data.image_files import ImageError
from cvattn.data.images.holding import Decoding, Held, each, positions_without
from cvattn.data.images.record_file import DamagedError, RecordFile, write_records
from cvattn.data.images.sources import ImageSource
from cvattn.system import printable

_SPARE = 64 * 2**20  # left free on the disk
_WAYS_OUT = "set CVATTN_CACHE to a folder with room, or data.hold=stream"


def mapped(source: ImageSource, part: str, how: Decoding, *, name: str, place: str) -> Held:
    """The pictures of a part, from the file in the cache; it is written first if there is none.

    One process writes, others wait for it.

    Args:
        source: where they come from.
        part: "train", "val" or "test".
        how: how they are decoded.
        name: of the data, begins the file's name.
        place: where the data is: there is one file for each place and size.

    Raises:
        DataError: no cache folder, no room on the disk, or it cannot be written to.
    """
    folder = cache_folder()
    if folder is None:
        raise DataError(
            "data.hold=mapped keeps a file in the cache folder, and CVATTN_CACHE="
            f"{os.environ.get('CVATTN_CACHE', '')} says that there is none; {_WAYS_OUT}"
        )
    whole = how.stores_whole(part)
    form = [how.channels, how.stored_size if whole else how.image_size]
    where = hashlib.sha256(json.dumps([place, part, form]).encode()).hexdigest()
    target = folder / f"{name}-{part}-{where[:16]}{IMAGES}"
    key = {
        "decoder": f"Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}",
        "form": form,
        "pictures": source.identity(times=True).hex(),
    }
    facts = {"key": json.loads(json.dumps(key)), "source": place, "part": part}
    try:
        records = _opened(target, facts)
        if records is None:
            with alone(target):
                records = _opened(target, facts)  # another process may have made it meanwhile
                if records is None:
                    _say_why(target, part)
                    sweep(folder)
                    _write(target, facts, source, part, how)
                    records = RecordFile(target)
    except OSError as error:
        raise DataError(
            f"data.hold=mapped: {target} cannot be written: {error.strerror or error}; {_WAYS_OUT}"
        ) from error
    mark_used(target)
    bad = [(at, why) for at, why in records.facts["bad"]]
    good = positions_without(len(source), bad)
    return Held(how.stored_pictures(records), good, bad, records.facts["fingerprint"])


def _opened(target: Path, facts: dict[str, Any]) -> RecordFile | None:
    """The file, if it is there, whole and of these pictures."""
    try:
        records = RecordFile(target)
    except (FileNotFoundError, DamagedError):
        return None
    return records if facts.items() <= records.facts.items() else None


def _say_why(target: Path, part: str) -> None:
    try:
        RecordFile(target)
    except FileNotFoundError:
        return
    except DamagedError as error:
        _say(f"{target}: {error}; it is made anew")
    else:
        _say(f"{target}: the {part} images or what decodes them changed; it is made anew")


def _write(
    target: Path, facts: dict[str, Any], source: ImageSource, part: str, how: Decoding
) -> None:
    needed = how.bytes_of({part: source})
    free = shutil.disk_usage(target.parent).free
    gib = f"{needed / 2**30:.2f} GiB"
    if needed + _SPARE > free:
        raise DataError(
            f"data.hold=mapped: the {len(source):,} {part} images of {facts['source']} take {gib} "
            f"in {target.parent}, where {free / 2**30:.2f} GiB are free; {_WAYS_OUT}"
        )
    _say(
        f"decoding the {len(source):,} {part} images of {facts['source']} once, into {target}: "
        f"{gib}, of {free / 2**30:.1f} GiB that are free there"
    )
    began = time.monotonic()
    bad: list[tuple[int, str]] = []
    digest = hashlib.sha256()
    facts = {**facts, "bad": bad, "fingerprint": ""}

    def pictures() -> Iterator[np.ndarray]:
        decoded = each(source, partial(how.decode, how.stores_whole(part)), how.workers)
        for at, found in enumerate(_shown(decoded, len(source), part)):
            if isinstance(found, ImageError):
                bad.append((at, str(found)))
                continue
            if part == "test":  # by which data is known; sums of all parts would take long
                as_in_tensor = np.ascontiguousarray(found.transpose(2, 0, 1))
                digest.update(as_in_tensor.data)
            yield found
        if part == "test":
            facts["fingerprint"] = digest.hexdigest()[:16]

    write_records(target, facts, pictures())
    _say(f"{target.name}: written in {time.monotonic() - began:.0f} s")


def _shown(items: Iterator[Any], total: int, part: str) -> Iterator[Any]:
    """The items, with a bar where there is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(
        items,
        description=f"decoding {part}",
        total=total,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)

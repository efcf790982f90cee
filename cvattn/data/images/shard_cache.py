"""What is kept of shards in the cache folder: their indices, and copies of those on servers."""

import hashlib
import io
import json
import shutil
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from cvattn.data.cache import INDEX, SHARD, SHARDS, alone, cache_folder, mark_used, sweep, whole
from cvattn.data.checks import DataError
from cvattn.data.download import progress
from cvattn.data.images.shard_index import Names, ShardIndex, index_shard
from cvattn.data.images.shard_places import Shard

_VERSION = 1
_CHUNK = 1 << 20
_LONG = 1 << 30  # bytes of shards whose indexing takes seconds


def indices_of(
    shards: Sequence[Shard], image_keys: Sequence[str], label_key: str
) -> list[ShardIndex]:
    """The index of each shard, made once and then read from the cache.

    An index is believed while its shard has the same size and time of change (or ETag), and made
    anew where it is damaged. It is small, one part in a thousand of its shard.

    Raises:
        DataError: as :func:`index_shard`.
    """
    folder = _folder()
    wanted = [_key(shard, image_keys, label_key) for shard in shards]
    known = [_load(folder, key) for key in wanted]
    if any(each is None for each in known):
        total = sum(shard.size for shard in shards)
        bar = progress("shards, indexed once", 0, total) if total > _LONG else nullcontext(_tell)
        with _alone(folder), bar as advance:  # one process makes them, others wait for it
            for at, shard in enumerate(shards):
                index = known[at] or _load(folder, wanted[at])
                if index is None:
                    with shard.open() as file:
                        index = index_shard(file, shard.address, image_keys, label_key)
                    _save(folder, wanted[at], index)
                known[at] = index
                advance(shard.size)
    return [each for each in known if each is not None]


def copies_of(shards: Sequence[Shard]) -> list[Shard]:
    """The shards on this machine: those on servers are copied into the cache folder, once.

    Says how much that is before it begins.

    Raises:
        DataError: there is no cache folder, it has not enough room, or a copy fails.
    """
    remote = [shard for shard in shards if not shard.is_local]
    if not remote:
        return list(shards)
    folder = _folder()
    if folder is None:
        raise DataError(
            "data.copy_shards=true copies shards into the cache folder, and CVATTN_CACHE says that "
            "there is none"
        )
    try:
        with alone(folder / "copies"):
            sweep(folder)
            if lacking := [shard for shard in remote if not _is_copied(folder, shard)]:
                _copy(lacking, folder)
    except OSError as error:
        raise DataError(
            f"cannot copy shards into {folder}: {error.strerror}; CVATTN_CACHE names another folder"
        ) from error
    return [shard if shard.is_local else _copied(folder, shard) for shard in shards]


def _copy(shards: Sequence[Shard], folder: Path) -> None:
    needed = sum(shard.size for shard in shards)
    free = shutil.disk_usage(folder).free
    what = f"{len(shards)} shards, {needed / 2**20:,.1f} MiB, into {folder}"
    if needed > 0.95 * free:
        raise DataError(
            f"cannot copy {what}: {free / 2**20:,.1f} MiB are free there; CVATTN_CACHE names "
            "another folder, and data.copy_shards=false reads them where they are"
        )
    print(f"copying {what} (data.copy_shards=true)", file=sys.stderr)
    with progress("shards", 0, needed) as advance:
        for shard in shards:
            with whole(_copy_path(folder, shard)) as out, shard.open() as file:
                while chunk := file.read(_CHUNK):
                    out.write(chunk)
                    advance(len(chunk))
                if out.tell() != shard.size:
                    raise DataError(
                        f"{shard.address} ended after {out.tell()} of {shard.size} bytes; run the "
                        "same command again: shards that are copied stay"
                    )


def _copied(folder: Path, shard: Shard) -> Shard:
    path = _copy_path(folder, shard)
    mark_used(path)
    # The original's name and mark, not the copy's: a copy made again is the same data.
    return replace(shard, address=str(path))


def _is_copied(folder: Path, shard: Shard) -> bool:
    path = _copy_path(folder, shard)
    return path.is_file() and path.stat().st_size == shard.size


def _copy_path(folder: Path, shard: Shard) -> Path:
    """A file for each version of each shard."""
    version = json.dumps([shard.address, shard.size, shard.changed])
    name = hashlib.sha256(version.encode()).hexdigest()[:16]
    return folder / f"{Path(shard.name).stem}-{name}{SHARD}"


def _folder() -> Path | None:
    base = cache_folder()
    return None if base is None else base / SHARDS


@contextmanager
def _alone(folder: Path | None) -> Iterator[None]:
    """As :func:`alone`, where there is a folder that can be written to."""
    with ExitStack() as stack:
        if folder is not None:
            with suppress(OSError):
                stack.enter_context(alone(folder / "indices"))
        yield


def _key(shard: Shard, image_keys: Sequence[str], label_key: str) -> str:
    facts = [_VERSION, shard.address, shard.size, shard.changed, list(image_keys), label_key]
    return json.dumps(facts)


def _index_path(folder: Path, key: str) -> Path:
    address = json.loads(key)[1]  # one file for each place: a changed shard replaces its index
    name = hashlib.sha256(address.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return folder / f"{name}{INDEX}"


def _load(folder: Path | None, key: str) -> ShardIndex | None:
    """None where there is none, or it is of another version of the shard, or damaged."""
    if folder is None:
        return None
    try:
        content = _index_path(folder, key).read_bytes()
        digest, content = content[:32], content[32:]
        if hashlib.sha256(key.encode() + content).digest() != digest:
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            texts, left = (Names(arrays[n], arrays[f"{n}_ends"]) for n in ("texts", "left"))
            return ShardIndex(
                keys=Names(arrays["keys"], arrays["keys_ends"]),
                offsets=arrays["offsets"],
                sizes=arrays["sizes"],
                labels=arrays["labels"],
                texts=tuple(texts),
                left=tuple(left),
                left_count=int(arrays["left_count"]),
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _save(folder: Path | None, key: str, index: ShardIndex) -> None:
    if folder is None:
        return
    out = io.BytesIO()
    texts, left = Names.of(index.texts), Names.of(index.left)
    np.savez(
        out,
        keys=index.keys.joined,
        keys_ends=index.keys.ends,
        offsets=index.offsets,
        sizes=index.sizes,
        labels=index.labels,
        texts=texts.joined,
        texts_ends=texts.ends,
        left=left.joined,
        left_ends=left.ends,
        left_count=np.int64(index.left_count),
    )
    content = out.getvalue()
    # A cache that cannot be written is no error.
    with suppress(OSError), whole(_index_path(folder, key)) as file:
        file.write(hashlib.sha256(key.encode() + content).digest() + content)


def _tell(count: int) -> None:
    """No bar: it would be gone before it is seen."""

"""Where shards are: paths and addresses from patterns, and bytes out of the middle of a file."""

import glob
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cvattn.data.checks import DataError
from cvattn.data.images.folder_files import named
from cvattn.system import is_offline, printable

_HERE = ("file", "local")  # fsspec's protocols of files on this machine
_NO_NETWORK = (*_HERE, "memory")


@dataclass(frozen=True)
class Shard:
    """One shard.

    Attributes:
        address: a path, or what fsspec opens (``s3://bucket/train-000000.tar``).
        name: the file's, the same wherever the shard lies.
        size: in bytes.
        changed: what is another one when the content is: the time of change, an ETag.
    """

    address: str
    name: str
    size: int
    changed: str

    @property
    def is_local(self) -> bool:
        return _protocol(self.address) in _HERE

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The whole shard, seekable, to be read from the front.

        Raises:
            DataError: it cannot be read.
        """
        with _named_errors(self.address), _opened(self.address) as file:
            yield file

    def read(self, offset: int, size: int) -> bytes:
        """Bytes out of the middle; by several threads at once.

        Raises:
            DataError: it cannot be read, or has become shorter.
        """
        with _named_errors(self.address):
            if self.is_local:
                # Opened each time, for 15 microseconds: a thousand shards may not stay open.
                with open(self.address, "rb", buffering=0) as file:
                    file.seek(offset)
                    data = file.read(size)
            else:
                system, path = _file_system(self.address)
                data = system.cat_file(path, start=offset, end=offset + size)
        if len(data) > size:
            raise DataError(
                f"{self.address}: the server sends no parts of files; data.copy_shards=true copies "
                "its shards to this machine first"
            )
        if len(data) != size:
            raise DataError(f"{self.address} has changed while it was in use: it ends too soon")
        return data


def shards_of(given: str | Sequence[str], setting: str) -> list[Shard]:
    """The shards that a setting names, in its order.

    Args:
        given: one or several paths or addresses, with braces (``{000000..000012}``) and wild cards
            (``*``, ``?``, ``[...]``); what a wild card stands for is sorted.
        setting: its name, for messages.

    Raises:
        DataError: some are missing (named), given twice, folders, on a server while downloads are
            forbidden, or the address is of no known kind.
    """
    _check_extra()
    patterns = [given] if isinstance(given, str) else list(given)
    addresses = [each for pattern in patterns for each in _expanded(str(pattern), setting)]
    if not addresses:
        raise DataError(f"{setting} names no shard; expected paths of tar files")
    if twice := [each for each, count in Counter(addresses).items() if count > 1]:
        raise DataError(f"{setting} names a shard twice: {named(twice)}")
    shards, missing = [], []
    for address in addresses:
        shard = _shard(address, setting)
        if shard is None:
            missing.append(address)
        else:
            shards.append(shard)
    if missing:
        raise DataError(
            f"{setting}: {len(missing)} of {len(addresses)} shards are missing: {named(missing)}"
            + _beside(missing[0])
        )
    return shards


def _check_extra() -> None:
    try:
        import braceexpand  # noqa: F401
        import webdataset.tariterators  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"data=webdataset needs webdataset ({error}): pip install 'cvattn[shards]'"
        ) from error


def _expanded(pattern: str, setting: str) -> list[str]:
    if pattern.startswith("pipe:"):
        raise DataError(
            f"{setting}={pattern}: commands are not run; give an address that fsspec opens (s3://, "
            "gs://, https://), or copy the shards"
        )
    if _protocol(pattern) in _HERE:
        path = _path(pattern)
        if os.path.exists(path):  # whatever signs its name has
            return [path]
        return [each for one in _braces(path, setting) for each in _globbed(one, setting)]
    _refuse_offline(pattern, setting)
    found = []
    for one in _braces(pattern, setting):
        if not glob.has_magic(one):
            found.append(one)
            continue
        with _named_errors(one):
            system, path = _file_system(one)
            matches = [system.unstrip_protocol(each) for each in sorted(system.glob(path))]
        found += _some(matches, one, setting)
    return found


def _braces(pattern: str, setting: str) -> list[str]:
    from braceexpand import braceexpand

    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise DataError(f"{setting}={pattern}: a brace is not closed ({error})") from error


def _globbed(path: str, setting: str) -> list[str]:
    if not glob.has_magic(path) or os.path.exists(path):
        return [path]
    return _some(sorted(glob.glob(path, recursive=True)), path, setting)


def _some(matches: list[str], pattern: str, setting: str) -> list[str]:
    if not matches:
        raise DataError(f"{setting}={pattern} matches nothing{_beside(pattern)}")
    return matches


def _shard(address: str, setting: str) -> Shard | None:
    """None if there is no such file."""
    with _named_errors(address):
        try:
            if _protocol(address) in _HERE:
                facts = os.stat(address)
                folder, size = stat.S_ISDIR(facts.st_mode), facts.st_size
                changed = str(facts.st_mtime_ns)
            else:
                system, path = _file_system(address)
                info = system.info(path)
                folder, size = info["type"] == "directory", info["size"]
                # fsspec's own mark of a file behind https:// is its address alone.
                marks = (info.get("ETag"), info.get("Last-Modified"), system.ukey(path))
                changed = " ".join(str(mark) for mark in marks if mark)
        except FileNotFoundError as error:
            # What fsspec's https says of a server that does not answer, too.
            cause = error.__cause__
            if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
                raise DataError(f"{printable(address)} cannot be read: {cause}") from error
            return None
    if folder:
        raise DataError(f"{setting}={address} is a folder; name its shards: {address}/*.tar")
    if size is None:
        raise DataError(f"{address}: the server does not tell its size; copy it to this machine")
    return Shard(address, address.rpartition("/")[2], int(size), changed)


def _beside(path: str) -> str:
    """What tar files are in the folder of a path that is missing."""
    if _protocol(path) not in _HERE:
        return ""
    folder = Path(path).parent
    if not folder.is_dir():
        return f"; {folder} is no folder"
    there = sorted(each.name for each in folder.iterdir() if ".tar" in each.name)
    return f"; in {folder} are: {named(there) if there else 'no tar files'}"


def _refuse_offline(address: str, setting: str) -> None:
    if is_offline() and _protocol(address) not in _NO_NETWORK:
        raise DataError(
            f"{setting}={address} is on a server, and CVATTN_OFFLINE forbids downloads; copy the "
            "shards to this machine and give their paths"
        )


def _protocol(address: str) -> str:
    from fsspec.utils import get_protocol

    return get_protocol(address)


def _path(address: str) -> str:
    """The path of a file on this machine, absolute."""
    bare = address.partition("://")[2] if "://" in address else address
    return str(Path(bare).expanduser().absolute())


def _opened(address: str) -> IO[bytes]:
    if _protocol(address) in _HERE:
        return open(address, "rb")
    system, path = _file_system(address)
    return system.open(path, "rb")


def _file_system(address: str) -> tuple[Any, str]:
    """fsspec's file system for an address, one for each process, and the path in it."""
    from fsspec.core import url_to_fs

    return url_to_fs(address)


@contextmanager
def _named_errors(address: str) -> Iterator[None]:
    """What a file system raises, as DataError with the address: packages of servers raise any."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{printable(address)} cannot be read: {reason}") from error

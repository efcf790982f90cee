"""Downloads that resume, and that one process makes at a time.

A file that we downloaded has a marker beside it (``NAME.downloaded.json``, with its sha256). Only
such files are ever set aside and fetched again; a file without a marker is somebody's own.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path

from cvattn.data.checks import DataError
from cvattn.data.remote import CHUNK, HEADERS, NETWORK_ERRORS, RemoteFile, describe_error


def fetch(
    file: RemoteFile, root: Path, *, attempts: int = 5, timeout: float = 15.0, pause: float = 1.0
) -> Path:
    """Download one file below ``root``, going on where an earlier attempt stopped.

    Gives up after ``attempts`` in a row that brought no byte; what arrived stays in
    ``NAME.part`` for the next time.

    Raises:
        DataError: naming the address, what went wrong and what to do.
    """
    path = root / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    failures, problem = 0, ""
    while failures < attempts:
        before = _size(part)
        try:
            if _fetch_part(file.url, part, timeout):
                os.replace(part, path)
                _tag(part).unlink(missing_ok=True)
                _mark(path, file.url)
                return path
            problem = "the connection was cut"
        except urllib.error.HTTPError as error:
            problem = describe_error(error)
            if error.code in (401, 403, 404, 410):
                break
        except NETWORK_ERRORS as error:
            problem = describe_error(error)
        failures = 0 if _size(part) > before else failures + 1
        time.sleep(pause * failures)
    raise DataError(
        f"could not download {file.url}: {problem}. {_size(part):,} bytes are kept in {part}; run "
        "the same command again to go on from there"
    )


def _fetch_part(url: str, part: Path, timeout: float) -> bool:
    """One connection's worth of the file; True when it is complete."""
    start = _size(part)
    headers = dict(HEADERS)
    if start:
        headers["Range"] = f"bytes={start}-"
        if _tag(part).exists():  # so that two versions of a file are never joined
            headers["If-Range"] = _tag(part).read_text()
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=timeout
        )
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:
            # Nothing after what we have: complete, or not the same file any more.
            if (error.headers.get("Content-Range") or "").endswith(f"/{start}"):
                return True
            part.unlink()
        raise
    with response:
        if response.status != 206:  # the whole file comes, whatever was asked for
            start = 0
            if (etag := response.headers.get("ETag")) and not etag.startswith("W/"):
                _tag(part).write_text(etag)
            else:
                _tag(part).unlink(missing_ok=True)
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with (
            part.open("ab" if start else "wb") as out,
            progress(url.rsplit("/", 1)[-1], start, total) as advance,
        ):
            while chunk := response.read1(CHUNK):
                out.write(chunk)
                advance(len(chunk))
    return total is None or _size(part) == total


@contextmanager
def progress(label: str, start: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar of bytes on stderr; yields what is called with each further count of them."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        task = bar.add_task(label, total=total, completed=start)
        yield lambda count: bar.advance(task, count)


@contextmanager
def lock(root: Path) -> Iterator[None]:
    """Hold the download lock of a data root; says so when another process has it."""
    from filelock import FileLock, Timeout

    try:
        root.mkdir(parents=True, exist_ok=True)
        guard = FileLock(root / ".cvattn-download.lock")
        try:
            guard.acquire(timeout=1)
        except Timeout:
            print(f"waiting: another process is downloading into {root}", file=sys.stderr)
            guard.acquire()
    except OSError as error:
        raise DataError(
            f"cannot write into data.root={root} ({error.strerror}); a download needs a folder "
            "that can be written to: set data.root or CVATTN_DATA"
        ) from error
    try:
        yield
    finally:
        guard.release()


def is_ours(path: Path) -> bool:
    """Whether this file was downloaded by :func:`fetch`."""
    return _marker(path).exists()


def is_as_downloaded(path: Path) -> bool:
    """Whether one of our files still has the content that it had when it was downloaded."""
    try:
        expected = json.loads(_marker(path).read_text())["sha256"]
    except (ValueError, KeyError, TypeError, OSError):
        return False
    return _sha256(path) == expected


def set_aside(path: Path) -> Path:
    """Rename a damaged file of ours to a free name beside it; the marker goes."""
    number, target = 1, path.with_name(path.name + ".damaged")
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.damaged-{number}")
    path.rename(target)
    _marker(path).unlink(missing_ok=True)
    return target


def _mark(path: Path, url: str) -> None:
    _marker(path).write_text(json.dumps({"url": url, "sha256": _sha256(path)}) + "\n")


def _marker(path: Path) -> Path:
    return path.with_name(path.name + ".downloaded.json")


def _tag(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0

"""Data sets on servers: what they are made of, and how long a download would take."""

import http.client
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass

CHUNK = 1 << 16
HEADERS = {"User-Agent": "cvattn"}
# What a broken network looks like from urllib: refused, reset, timed out, cut short, nonsense.
NETWORK_ERRORS = (OSError, http.client.HTTPException)


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server: its address, its path below the data root, its size in bytes."""

    url: str
    path: str
    size: int


@dataclass(frozen=True)
class Source:
    """Files that together are a data set, and the server's name for people."""

    name: str
    files: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Promise:
    """What a probe of a source found: seconds for all its files, or what went wrong."""

    source: Source
    seconds: float | None
    problem: str = ""


def probe(
    sources: Sequence[Source],
    *,
    seconds: float = 5.0,
    enough: int = 8 << 20,
    deadline: float = 12.0,
) -> list[Promise]:
    """Measure how long each source would take, all of them at the same time.

    Reads from each source's first file for ``seconds`` or until ``enough`` bytes. Sources on one
    slow line share it, so the promise is never too good. Returns within ``deadline`` seconds
    even where the system's own look-up of a name hangs, and as soon as one source is known to be
    fast.
    """
    stop = threading.Event()
    fast = threading.Event()
    promises: dict[str, Promise] = {}

    def measure(source: Source) -> None:
        try:
            promise = Promise(source, _seconds_for(source, seconds, enough, stop, deadline))
            if promise.seconds is not None and promise.seconds < 60:
                fast.set()
        except NETWORK_ERRORS as error:
            promise = Promise(source, None, describe_error(error))
        promises[source.name] = promise

    # Daemon threads: a name look-up cannot be interrupted, and must not hold up the program's end.
    threads = [threading.Thread(target=measure, args=(s,), daemon=True) for s in sources]
    for thread in threads:
        thread.start()
    end = time.monotonic() + deadline
    while time.monotonic() < end and not fast.is_set() and any(t.is_alive() for t in threads):
        time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join(timeout=0.5)
    late = f"no answer within {deadline:.0f} s"
    return [promises.get(s.name, Promise(s, None, late)) for s in sources]


def _seconds_for(
    source: Source, seconds: float, enough: int, stop: threading.Event, timeout: float
) -> float:
    request = urllib.request.Request(source.files[0].url, headers=HEADERS)
    with urllib.request.urlopen(request, timeout=timeout) as response:
        # read1 returns what is there: a throttled server still gives a rate.
        done = len(response.read1(CHUNK))
        start, first = time.monotonic(), done
        while time.monotonic() - start < seconds and done < enough and not stop.is_set():
            chunk = response.read1(CHUNK)
            if not chunk:
                break
            done += len(chunk)
        rate = max(done - first, 1) / max(time.monotonic() - start, 1e-6)
    return source.size / rate


def describe_error(error: BaseException) -> str:
    """A network error in a few words."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return f"{type(error).__name__}: {error}"

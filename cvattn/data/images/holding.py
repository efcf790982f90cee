"""How the pictures of a source are held: ``data.hold=memory``, ``mapped`` or ``stream``.

- ``memory``: decoded at the start, by each process for itself. Without a random resized crop a
  tensor of images; with one, pictures at their own shapes.
- ``mapped``: decoded once into a file of the cache folder (:mod:`cvattn.data.images.record_file`),
  which all processes and later runs read.
- ``stream``: nothing is held; each image is decoded each time that it is shown.

Without a random resized crop all three give the same pixels, bit for bit. With one, ``stream`` cuts
the part out of the picture itself, the others out of one that was scaled to ``stored_size``.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from cvattn.core.memory import available_bytes
from cvattn.data.checks import DataError
from cvattn.data.image_files import ImageError, check_quickly, cut, read_picture, size_of
from cvattn.data.images.pictures import (
    Pictures,
    Records,
    StoredPictures,
    StreamedPictures,
    ahead_of,
)
from cvattn.data.images.resized_crop import RandomResizedCrop
from cvattn.data.images.sources import Chosen, ImageSource
from cvattn.system.machine import usable_cores

HOLDS = ("memory", "mapped", "stream")
_MOST_WORKERS = 8
_SHARE = 8  # pictures that a thread decodes in one go
_OF_FREE = 0.8  # of the free memory, that images may take: networks need some, too


def default_workers(processes: int) -> int:
    """Threads for one of so many processes on this machine: its share of the cores, at most 8."""
    return max(1, min(_MOST_WORKERS, usable_cores() // processes))


@dataclass(frozen=True)
class Decoding:
    """What becomes of a picture.

    Attributes:
        channels: 3 (colour) or 1 (grey).
        image_size: (H, W) of the images that a network is given.
        crop: of training images; None: they are scaled to cover and cut once, as the others are.
        stored_size: with ``crop``, the shorter side that larger pictures are scaled down to.
        workers: threads.
    """

    channels: int
    image_size: tuple[int, int]
    crop: RandomResizedCrop | None
    stored_size: int
    workers: int

    def stores_whole(self, part: str) -> bool:
        """Whether that part's pictures are kept uncut, to be cropped anew each epoch."""
        return part == "train" and self.crop is not None

    def decode(self, whole: bool, file: Any) -> np.ndarray:
        """The pixels that are kept of a file, uint8 (h, w, C).

        Raises:
            ImageError: it cannot be read.
        """
        picture = read_picture(file, self.channels)
        if not whole:
            return cut(picture, self.image_size).transpose(1, 2, 0)
        height, width = self.stored((picture.height, picture.width))
        if picture.size != (width, height):
            picture = _scaled(picture, (width, height))
        return np.array(picture).reshape(height, width, self.channels)

    def stored(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) at which a picture of that size is kept uncut; none is scaled up."""
        factor = min(1.0, self.stored_size / min(size))
        height, width = (max(1, round(side * factor)) for side in size)
        return height, width

    def stored_pictures(self, records: Records) -> StoredPictures:
        """The pictures of these records, as a loader takes them."""
        return StoredPictures(
            records, channels=self.channels, image_size=self.image_size, workers=self.workers
        )

    def bytes_of(self, sources: Mapping[str, ImageSource]) -> int:
        """How much the decoded pictures take; from the headers where their sizes differ."""
        total = 0
        for part, source in sources.items():
            if self.stores_whole(part):
                sizes = each(source, size_of, self.workers)
                areas = (math.prod(self.stored(s)) for s in sizes if not isinstance(s, ImageError))
                total += sum(areas) * self.channels
            else:
                total += len(source) * self.channels * math.prod(self.image_size)
        return total


class Held(NamedTuple):
    """The readable pictures of a part.

    Attributes:
        images: uint8 (N, C, H, W), or pictures that are made when asked for.
        good: their positions in the source, int64 (N,).
        bad: position in the source of each that cannot be read, and why.
        fingerprint: of the pixels, or of what stands for them; "": to be computed, or of a part
            of which nobody asks for it.
    """

    images: torch.Tensor | Pictures
    good: torch.Tensor
    bad: list[tuple[int, str]]
    fingerprint: str = ""


def in_memory(source: ImageSource, part: str, how: Decoding) -> Held:
    """Decode all of a part into memory."""
    whole = how.stores_whole(part)
    records: list[np.ndarray] = []
    shape = (0 if whole else len(source), how.channels, *how.image_size)
    images = torch.empty(shape, dtype=torch.uint8)
    good: list[int] = []
    bad: list[tuple[int, str]] = []
    for at, found in enumerate(each(source, partial(how.decode, whole), how.workers)):
        if isinstance(found, ImageError):
            bad.append((at, str(found)))
            continue
        if whole:
            records.append(found)
        else:
            np.copyto(images[len(good)].numpy(), found.transpose(2, 0, 1))
        good.append(at)
    kept = torch.tensor(good, dtype=torch.int64)
    if not whole:
        return Held(images[: len(good)], kept, bad)
    return Held(how.stored_pictures(records), kept, bad)


def streamed(source: ImageSource, how: Decoding, *, checked: bool) -> Held:
    """Decode nothing now.

    Args:
        checked: look at each file quickly (:func:`check_quickly`), and leave out what fails.
    """
    bad = []
    if checked:
        found = each(source, check_quickly, how.workers)
        bad = [(at, str(error)) for at, error in enumerate(found) if error is not None]
    good = positions_without(len(source), bad)
    pictures = StreamedPictures(
        Chosen(source, good) if bad else source,
        channels=how.channels,
        image_size=how.image_size,
        workers=how.workers,
    )
    # Of the names and sizes of the files: their pixels are not known.
    return Held(pictures, good, bad, f"files-{source.identity(times=False).hex()[:16]}")


def positions_without(count: int, bad: list[tuple[int, str]]) -> torch.Tensor:
    """0..count-1 but those, int64."""
    kept = torch.ones(count, dtype=torch.bool)
    kept[[at for at, _ in bad]] = False
    return kept.nonzero()[:, 0]


def each(source: ImageSource, read: Callable[[Any], Any], workers: int) -> Iterator[Any]:
    """What ``read`` makes of each file of a source, in their order, or its ImageError."""

    def attempt(share: range) -> list[Any]:
        found: list[Any] = []
        for at in share:
            try:
                found.append(read(source.file(at)))
            except ImageError as error:
                found.append(error)
        return found

    shares = (range(len(source))[at : at + _SHARE] for at in range(0, len(source), _SHARE))
    with ThreadPoolExecutor(workers, "cvattn-decoding") as pool:
        try:
            tasks = (partial(pool.submit, attempt, share) for share in shares)
            for share in ahead_of(tasks, 2 * workers):
                yield from share.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def check_memory(needed: int, what: str, advice: str, *, copies: int = 1) -> None:
    """Raise DataError if so many bytes, once for each process here, are more than there is room.

    Room is 80 % of what is free: of the machine, and under the limits of control groups.

    Args:
        needed: bytes of one copy.
        what: whose they are, as the start of a sentence.
        advice: what to do, as the end of one.
        copies: processes on this machine that hold one each.
    """
    free = available_bytes(torch.device("cpu"))
    if free is None or needed * copies <= _OF_FREE * free:
        return
    times = f" in each of {copies} processes" if copies > 1 else ""
    raise DataError(
        f"{what} need {needed / 2**30:.1f} GiB{times}, and of the memory {free / 2**30:.1f} GiB "
        f"are free, of which images may take {_OF_FREE:.0%}: {advice}"
    )


def _scaled(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    try:
        return picture.resize(size, Image.Resampling.BICUBIC)
    except (ValueError, MemoryError) as error:
        raise ImageError(
            f"{picture.width} x {picture.height} pixels cannot be scaled: {error}"
        ) from error

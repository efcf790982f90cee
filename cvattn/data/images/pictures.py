"""Pictures that are no tensor: kept at their own sizes, in a file, or decoded when asked for.

Several threads make a batch, straight into one tensor. Threads and not processes: Pillow and torch
let go of Python's lock while they decode and scale, nothing is copied between processes, an error
arrives as it was raised, and nothing is left behind by a kill.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cvattn.data.checks import DataError
from cvattn.data.image_files import ImageError, cut, read_part, read_picture
from cvattn.data.images.resized_crop import RandomResizedCrop, scale_into
from cvattn.data.images.sources import ImageSource

T = TypeVar("T")
_SHARE = 8  # images that a thread makes in one go; fewer, and the going to and fro is felt
# A part is decoded at a reduced size where it keeps twice the pixels each way that it is scaled to:
# what Pillow calls reducing_gap=2, and nobody sees.
_GAP = 2
_AHEAD = 2  # batches that are made before they are asked for


class Records(Protocol):
    """Pixels of pictures by their positions, uint8 (h, w, C): a list, or a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, at: int, /) -> np.ndarray: ...


class Pictures:
    """The images of one part, each made when it is asked for; a subclass says how.

    Args:
        count: how many there are.
        channels: 3 (colour) or 1 (grey).
        image_size: (H, W) of the images that are made.
        workers: threads that make a batch.
    """

    def __init__(
        self, count: int, channels: int, image_size: tuple[int, int], workers: int
    ) -> None:
        self.count = count
        self.channels = channels
        self.image_size = image_size
        self.workers = workers

    def __len__(self) -> int:
        return self.count

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W), as a tensor of all the images would have it."""
        return (self.count, self.channels, *self.image_size)

    def __getitem__(self, index: Tensor) -> Tensor:
        """The images at ``index``, int64 (n,): scaled to cover and cut, uint8 (n, C, H, W)."""
        return next(self.batches([index]))

    def batches(
        self,
        indices: Sequence[Tensor],
        crop: RandomResizedCrop | None = None,
        *,
        seed: int = 0,
        epoch: int = 0,
    ) -> Iterator[Tensor]:
        """Batches of images in that order, uint8 (B, C, H, W), the next ones made meanwhile.

        Args:
            indices: the positions of each batch's images, int64 (B,); or draws, whose remainder by
                the number of images is the position, where an image comes again in an epoch.
            crop: a random part of each image, by (seed, epoch, draw); None: as by ``[]``.

        Raises:
            DataError: an image cannot be had; the text says which, and why.
        """

        if not indices:
            return

        def begin(index: Tensor) -> tuple[Tensor, list[Future]]:
            images = torch.empty(len(index), *self.shape[1:], dtype=torch.uint8)
            draws = None if crop is None else crop.draws(index, seed=seed, epoch=epoch)
            out, places = images.numpy(), (index % self.count).tolist()

            def make(share: range) -> None:
                for at in share:
                    if crop is None or draws is None:
                        self.write_cut(out[at], places[at])
                    else:
                        self.write_part(out[at], places[at], crop, draws[at])

            size = self._share(len(places))
            shares = (range(len(places))[at : at + size] for at in range(0, len(places), size))
            return images, [pool.submit(make, share) for share in shares]

        with ThreadPoolExecutor(self.workers, "cvattn-images") as pool:
            tasks = (partial(begin, index) for index in indices)
            try:
                for images, shares in ahead_of(tasks, self._ahead(len(indices[0]))):
                    for share in shares:
                        share.result()
                    yield images
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _share(self, batch: int) -> int:
        return max(1, min(_SHARE, batch // self.workers))

    def _ahead(self, batch: int) -> int:
        """Batches begun early: enough that no thread waits, of small ones too."""
        return max(_AHEAD, math.ceil(2 * self.workers * self._share(batch) / max(1, batch)))

    def write_cut(self, out: np.ndarray, at: int) -> None:
        """Put image ``at``, scaled to cover and cut, into ``out``, uint8 (C, H, W)."""
        raise NotImplementedError

    def write_part(
        self, out: np.ndarray, at: int, crop: RandomResizedCrop, draws: np.ndarray
    ) -> None:
        """Put the part of image ``at`` that ``crop`` and ``draws`` say into ``out``."""
        raise NotImplementedError


class StreamedPictures(Pictures):
    """Decoded from their files each time.

    Args:
        source: where they come from.
        others: as in :class:`Pictures`.
    """

    def __init__(
        self, source: ImageSource, *, channels: int, image_size: tuple[int, int], workers: int
    ) -> None:
        super().__init__(len(source), channels, image_size, workers)
        self.source = source

    def write_cut(self, out: np.ndarray, at: int) -> None:
        out[...] = self._read(
            at, lambda file: cut(read_picture(file, self.channels), self.image_size)
        )

    def write_part(
        self, out: np.ndarray, at: int, crop: RandomResizedCrop, draws: np.ndarray
    ) -> None:
        choose = partial(crop.part, draws)
        least = (_GAP * self.image_size[0], _GAP * self.image_size[1])
        part = self._read(at, lambda file: read_part(file, self.channels, choose, least))
        scale_into(out, part)

    def _read(self, at: int, read: Callable) -> np.ndarray:
        try:
            return read(self.source.file(at))
        except ImageError as error:
            raise DataError(f"{self.source.name(at)} cannot be read: {error}") from error


class StoredPictures(Pictures):
    """Decoded once, and kept at sizes of their own.

    Args:
        records: the pixels of each picture.
        others: as in :class:`Pictures`.
    """

    def __init__(
        self,
        records: Records,
        *,
        channels: int,
        image_size: tuple[int, int],
        workers: int,
    ) -> None:
        super().__init__(len(records), channels, image_size, workers)
        self.records = records

    def write_cut(self, out: np.ndarray, at: int) -> None:
        pixels = self.records[at]
        if pixels.shape[:2] == self.image_size:
            np.copyto(out, pixels.transpose(2, 0, 1))
        else:
            picture = Image.fromarray(pixels if self.channels == 3 else pixels[..., 0])
            out[...] = cut(picture, self.image_size)

    def write_part(
        self, out: np.ndarray, at: int, crop: RandomResizedCrop, draws: np.ndarray
    ) -> None:
        pixels = self.records[at]
        top, left, height, width = crop.part(draws, *pixels.shape[:2])
        scale_into(out, pixels[top : top + height, left : left + width])


def ahead_of(tasks: Iterable[Callable[[], T]], count: int) -> Iterator[T]:
    """What the tasks return, in their order, each begun ``count`` before it is asked for."""
    begun: deque[T] = deque()
    for task in tasks:
        begun.append(task())
        if len(begun) > count:
            yield begun.popleft()
    yield from begun

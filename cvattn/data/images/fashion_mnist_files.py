"""Fashion-MNIST on disk: its four idx files, where people have them, and what is in them.

An idx file is a header (two zero bytes, the type, the number of dimensions, their sizes as
big-endian 32-bit integers) and the values. The files are told by the sha256 of their content, not
by that of a compressed file: people have them compressed in several ways (Debian drops the name
that the published .gz files carry), and MNIST's files have the same names and sizes.
"""

import gzip
import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import torch

from cvattn.data import download, remote
from cvattn.data.checks import DataError
from cvattn.data.images.base import ImageSet

TORCHVISION = Path("FashionMNIST", "raw")  # below a data root, where torchvision downloads to
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # apt install dataset-fashion-mnist
SIDE = 28


@dataclass(frozen=True)
class Idx:
    """The images or the labels of one part.

    Attributes:
        name: of the unpacked file; compressed it ends in ``.gz``.
        sha256: of the unpacked content.
        shape: of the values.
        packed_size: bytes of the published ``.gz``, to tell how long a download takes.
    """

    name: str
    sha256: str
    shape: tuple[int, ...]
    packed_size: int


# The published files are those whose md5 sums torchvision knows; a test puts their headers back
# onto Debian's and compares.
FILES: Mapping[str, tuple[Idx, Idx]] = {
    "train": (
        Idx(
            "train-images-idx3-ubyte",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            (60_000, SIDE, SIDE),
            26_421_880,
        ),
        Idx(
            "train-labels-idx1-ubyte",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            (60_000,),
            29_515,
        ),
    ),
    "test": (
        Idx(
            "t10k-images-idx3-ubyte",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            (10_000, SIDE, SIDE),
            4_422_102,
        ),
        Idx(
            "t10k-labels-idx1-ubyte",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            (10_000,),
            5_148,
        ),
    ),
}


@dataclass(frozen=True)
class Found:
    """A folder with all four files; ``paths`` in the order of :data:`FILES`."""

    paths: tuple[Path, ...]

    @property
    def words(self) -> str:
        """Where it is, for people."""
        return f"idx files in {self.paths[0].parent}"


def find(root: Path) -> Found | None:
    """The first complete copy, by names alone; None where there is nothing.

    Looks where torchvision downloads to (``root/FashionMNIST/raw``), in ``root/fashion-mnist`` and
    ``root/fashion_mnist``, in the root itself, and where Debian's package ``dataset-fashion-mnist``
    has it. Each file may be unpacked or ``.gz``; the unpacked one is taken where both are.

    Raises:
        DataError: a folder has some of the four files, and they are not our own unfinished
            download; no other has all of them.
    """
    half: Path | None = None
    for folder in (
        root / TORCHVISION,
        root / "fashion-mnist",
        root / "fashion_mnist",
        root,
        DEBIAN,
    ):
        found = {idx.name: _path(folder, idx) for idx in _all()}
        there = [path for path in found.values() if path is not None]
        if len(there) == len(found):
            return Found(tuple(there))
        if not all(map(download.is_ours, there)):
            half = half or folder / next(name for name, path in found.items() if path is None)
    if half is not None:
        raise DataError(
            f"{half} is missing (with or without .gz), others of Fashion-MNIST's four files are "
            "there; add it"
        )
    return None


def problem(found: Found) -> tuple[Path, str] | None:
    """The first file without the published content, and what is wrong with it; half a second."""
    for path, idx in zip(found.paths, _all(), strict=True):
        try:
            _content(path, idx)
        except DataError as error:
            return path, str(error).removeprefix(f"{path} ")
    return None


def read(found: Found) -> dict[str, ImageSet]:
    """All images, uint8 (N, 1, 28, 28), and labels of "train" and "test", in the published order.

    Raises:
        DataError: naming the file that has not the published content.
    """
    contents = iter(zip(found.paths, _all(), strict=True))
    sets = {}
    for part in FILES:
        images, labels = (_values(*next(contents)) for _ in range(2))
        sets[part] = ImageSet(images.unsqueeze(1), labels.long())
    return sets


def sources() -> tuple[remote.Source, ...]:
    """The servers that torchvision knows; the files go where it would put them."""
    from torchvision.datasets import FashionMNIST

    return tuple(
        remote.Source(
            urlsplit(mirror).netloc,
            tuple(
                remote.RemoteFile(
                    f"{mirror}{idx.name}.gz", f"{TORCHVISION}/{idx.name}.gz", idx.packed_size
                )
                for idx in _all()
            ),
        )
        for mirror in FashionMNIST.mirrors
    )


def _all() -> list[Idx]:
    return [idx for part in FILES.values() for idx in part]


def _path(folder: Path, idx: Idx) -> Path | None:
    plain = folder / idx.name
    return next((path for path in (plain, Path(f"{plain}.gz")) if path.is_file()), None)


def _values(path: Path, idx: Idx) -> torch.Tensor:
    # The header needs no reading: by its sum the content is known.
    start = 4 + 4 * len(idx.shape)
    values = np.frombuffer(_content(path, idx), np.uint8, offset=start)
    return torch.from_numpy(values.reshape(idx.shape).copy())


def _content(path: Path, idx: Idx) -> bytes:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:  # gzip's own error is an OSError
        raise DataError(f"{path} is truncated or damaged: {error}") from error
    if hashlib.sha256(content).hexdigest() == idx.sha256:
        return content
    size = 4 + 4 * len(idx.shape) + int(np.prod(idx.shape))
    what = (
        "is damaged, or of other data (MNIST's files have the same names)"
        if len(content) == size
        else f"is truncated or damaged: {len(content):,} bytes of {size:,}"
    )
    raise DataError(f"{path} {what}: its content is not Fashion-MNIST's")

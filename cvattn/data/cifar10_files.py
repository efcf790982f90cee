"""CIFAR-10 on disk, in each of the forms that people have: finding, checking, reading.

Damage is reported with the file's name and, where the format knows it, the place in it.
"""

import hashlib
import io
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cvattn.data import download
from cvattn.data.cache import cached
from cvattn.data.checks import DataError
from cvattn.data.image_data import ImageSet

COUNTS = {"train": 50_000, "test": 10_000}
# sha256 of the labels as uint8, in the official order.
LABEL_HASHES = {
    "train": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "test": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}
# sha256 of the first 1,000 official test images as uint8 (1000, 32, 32, 3) in C order.
OFFICIAL_PIXELS = "da362006b99671213d1a5d856cab2bedf64d40bad4501630ee60f4ceb2d3ec7f"
ARCHIVE = "cifar-10-python.tar.gz"
PARQUETS = {"train": "train-00000-of-00001.parquet", "test": "test-00000-of-00001.parquet"}


@dataclass(frozen=True)
class Found:
    """CIFAR-10 in one form: "folder" (extracted batches), "archive" (.tar.gz) or "parquet".

    ``paths`` holds the folder, the archive, or the parquet files of train and test.
    """

    form: str
    paths: tuple[Path, ...]

    @property
    def words(self) -> str:
        """Where it is, for people."""
        if self.form == "parquet":
            return f"parquet files in {self.paths[0].parent}"
        kind = "the official archive" if self.form == "archive" else "the official batches"
        return f"{kind} {self.paths[0]}"


def find(root: Path) -> Found | None:
    """The best copy below a data root, by names alone; None where there is nothing.

    Looks in the root and in ``root/cifar10``: the extracted folder, the archive, then the two
    parquet files (also in ``plain_text/``). An incomplete copy counts only where no complete one
    is.

    Raises:
        DataError: one of the two parquet files is there and the other is not, and it is not our
            own unfinished download.
    """
    from torchvision.datasets import CIFAR10

    incomplete: Found | None = None
    half: Path | None = None
    for base in (root, root / "cifar10"):
        folder = base / CIFAR10.base_folder
        if folder.is_dir():
            if all((folder / name).is_file() for name, _ in _batches()):
                return Found("folder", (folder,))
            incomplete = incomplete or Found("folder", (folder,))
        if (base / ARCHIVE).is_file():
            return Found("archive", (base / ARCHIVE,))
        for place in (base, base / "plain_text"):
            paths = tuple(place / name for name in PARQUETS.values())
            there = [path for path in paths if path.is_file()]
            if len(there) == 2:
                return Found("parquet", paths)
            if there and not download.is_ours(there[0]):
                half = half or next(path for path in paths if path not in there)
    if incomplete is None and half is not None:
        raise DataError(f"{half} is missing, the other parquet file of CIFAR-10 is there; add it")
    return incomplete


def problem(found: Found) -> tuple[Path, str] | None:
    """The first damaged file and what is wrong with it; None if all checksums agree.

    Costs under a second: checksums of the official files, label hashes of the parquet files (their
    pixels are only decoded by :func:`read`, unless we know their sha256 from a download).
    """
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    if found.form == "folder":
        for name, md5 in _batches():
            path = found.paths[0] / name
            if not path.is_file():
                return path, "is missing from the extracted archive"
            if not check_integrity(str(path), md5):
                return path, f"is damaged: its md5 is not {md5}"
        return None
    if found.form == "archive":
        path = found.paths[0]
        if not check_integrity(str(path), CIFAR10.tgz_md5):
            return path, f"is truncated or damaged: its md5 is not {CIFAR10.tgz_md5}"
        return None
    for split, path in zip(PARQUETS, found.paths, strict=True):
        if download.is_ours(path) and not download.is_as_downloaded(path):
            return path, "is no longer as it was downloaded"
        try:
            _check_labels(split, path, _labels(path))
        except DataError as error:
            return path, str(error).removeprefix(f"{path} ")
    return None


def read(found: Found) -> dict[str, ImageSet]:
    """All images and labels, "train" (50,000) and "test" (10,000), in the official order.

    Raises:
        DataError: naming the damaged file.
    """
    if found.form == "parquet":
        return _read_parquets(found.paths)
    if found.form == "folder":
        try:
            return _read_batches(found.paths[0].parent)
        except RuntimeError as error:  # torchvision checks, and does not say which file it is
            wrong = problem(found) or (found.paths[0], f"cannot be read: {error}")
            raise DataError(" ".join(map(str, wrong))) from error
    # Into a folder of our own for a moment: a data root may be read only, and is not ours.
    with tempfile.TemporaryDirectory(prefix="cvattn-") as place:
        try:
            with tarfile.open(found.paths[0]) as archive:
                archive.extractall(place, filter="data")
            return _read_batches(Path(place))
        except (tarfile.TarError, EOFError, zlib.error, RuntimeError) as error:
            raise DataError(
                f"{found.paths[0]} is truncated or damaged: {error}; get the archive again"
            ) from error


def has_official_pixels(test: Tensor) -> bool:
    """Whether the first 1,000 test images, uint8 (N, 3, 32, 32), are the published ones."""
    pixels = test[:1000].permute(0, 2, 3, 1).contiguous().numpy()
    return hashlib.sha256(pixels.tobytes()).hexdigest() == OFFICIAL_PIXELS


def _batches() -> list[tuple[str, str]]:
    """(file name, md5) of everything in the extracted folder that torchvision reads."""
    from torchvision.datasets import CIFAR10

    files = [(name, md5) for name, md5 in (*CIFAR10.train_list, *CIFAR10.test_list)]
    return [*files, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]


def _read_batches(root: Path) -> dict[str, ImageSet]:
    from torchvision.datasets import CIFAR10

    sets = {}
    for split in ("train", "test"):
        with warnings.catch_warnings():
            # The published pickles are of 2009; newer NumPy versions warn about their spelling.
            warnings.simplefilter("ignore")
            data = CIFAR10(root, train=split == "train", download=False)
        images = torch.from_numpy(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)))
        sets[split] = ImageSet(images, torch.tensor(data.targets))
    return sets


def _read_parquets(paths: Sequence[Path]) -> dict[str, ImageSet]:
    import PIL

    files = dict(zip(PARQUETS, paths, strict=True))
    labels = {split: _labels(path) for split, path in files.items()}
    for split, path in files.items():
        _check_labels(split, path, labels[split])

    def make() -> dict[str, np.ndarray]:
        return {split: _decode_parquet(path) for split, path in files.items()}

    pixels, _ = cached("cifar10", paths, f"Pillow {PIL.__version__}", make)
    return {
        split: ImageSet(torch.from_numpy(pixels[split]), torch.from_numpy(labels[split]))
        for split in files
    }


def _decode_parquet(path: Path) -> np.ndarray:
    """All images of a parquet file, uint8 (N, 3, 32, 32)."""
    column = _column(path, "img")
    try:
        encoded = column.combine_chunks().field("bytes").to_pylist()
    except (KeyError, AttributeError) as error:
        raise DataError(f"{path} has no image bytes in its column 'img': {column.type}") from error
    pixels = np.empty((len(encoded), 32, 32, 3), dtype=np.uint8)
    for row, data in enumerate(encoded):
        pixels[row] = _decode(path, row, data)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def _decode(path: Path, row: int, data: bytes | None) -> np.ndarray:
    """Pixels of one encoded image, uint8 (32, 32, 3).

    Pillow takes 70 microseconds for each, most of them in its Python part, so threads don't help;
    torchvision's decoder is twice as fast, and about to be removed from it.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data or b""), formats=("PNG", "JPEG")) as image:
            size = image.size
            # Through bytes: numpy's way into an image costs as much as the decoding.
            pixels = (image.convert("RGB") if image.mode != "RGB" else image).tobytes()
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} is damaged: image {row} cannot be decoded: {error}") from error
    if size != (32, 32):
        raise DataError(f"{path}: image {row} has {size} pixels (W, H), expected (32, 32)")
    return np.frombuffer(pixels, np.uint8).reshape(32, 32, 3)


def _labels(path: Path) -> np.ndarray:
    # Copied: what Arrow hands out is read only, and torch wants to own its memory.
    return np.asarray(_column(path, "label")).astype(np.int64)


def _check_labels(split: str, path: Path, labels: np.ndarray) -> None:
    if len(labels) != COUNTS[split]:
        raise DataError(f"{path} holds {len(labels)} images, expected {COUNTS[split]}")
    if hashlib.sha256(labels.astype(np.uint8).tobytes()).hexdigest() != LABEL_HASHES[split]:
        raise DataError(f"{path} holds other labels than CIFAR-10's, or in another order")


def _column(path: Path, name: str) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_table(path, columns=[name]).column(name)
    except KeyError as error:
        raise DataError(f"{path} has no column {name!r}; is it CIFAR-10?") from error
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is truncated or damaged: {error}") from error

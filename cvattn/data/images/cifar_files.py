"""CIFAR-10 and CIFAR-100 on disk, in the forms that people have: finding, checking, reading.

Damage is reported with the file's name and, where the format knows it, the place in it.
"""

import hashlib
import io
import tarfile
import tempfile
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cvattn.data import download
from cvattn.data.cache import cached
from cvattn.data.checks import DataError
from cvattn.data.images.base import ImageSet
from cvattn.data.images.cifar_facts import PARQUETS, Cifar


@dataclass(frozen=True)
class Found:
    """One of the two in one form: "folder" (extracted), "archive" (.tar.gz) or "parquet".

    ``paths`` holds the folder, the archive, or the parquet files of train and test.
    """

    cifar: Cifar
    form: str
    paths: tuple[Path, ...]

    @property
    def words(self) -> str:
        """Where it is, for people."""
        if self.form == "parquet":
            return f"parquet files in {self.paths[0].parent}"
        kind = "the official archive" if self.form == "archive" else "the official batches"
        return f"{kind} {self.paths[0]}"


def find(cifar: Cifar, root: Path) -> Found | None:
    """The best copy below a data root, by names alone; None where there is nothing.

    Looks in the root and in ``root/cifar10`` (or ``root/cifar100``): the extracted folder, the
    archive, then the two parquet files (also in ``plain_text/``). An incomplete copy counts only
    where no complete one is.

    Raises:
        DataError: one of the two parquet files is there and the other is not, and it is not our
            own unfinished download.
    """
    incomplete: Found | None = None
    half: Path | None = None
    for base in (root, root / cifar.name):
        folder = base / cifar.torchvision.base_folder
        if folder.is_dir():
            if all((folder / name).is_file() for name, _ in _official(cifar)):
                return Found(cifar, "folder", (folder,))
            incomplete = incomplete or Found(cifar, "folder", (folder,))
        if (base / cifar.archive).is_file():
            return Found(cifar, "archive", (base / cifar.archive,))
        for place in (base, base / "plain_text"):
            paths = tuple(place / name for name in PARQUETS.values())
            there = [path for path in paths if path.is_file()]
            if len(there) == 2:
                return Found(cifar, "parquet", paths)
            if there and not download.is_ours(there[0]):
                half = half or next(path for path in paths if path not in there)
    if incomplete is None and half is not None:
        raise DataError(
            f"{half} is missing, the other parquet file of {cifar.title} is there; add it"
        )
    return incomplete


def problem(found: Found) -> tuple[Path, str] | None:
    """The first damaged file and what is wrong with it; None if all checksums agree.

    Costs under a second: checksums of the official files, label hashes of the parquet files (their
    pixels are only decoded by :func:`read`, unless we know their sha256 from a download).
    """
    from torchvision.datasets.utils import check_integrity

    if found.form == "folder":
        for name, md5 in _official(found.cifar):
            path = found.paths[0] / name
            if not path.is_file():
                return path, "is missing from the extracted archive"
            if not check_integrity(str(path), md5):
                return path, f"is damaged: its md5 is not {md5}"
        return None
    if found.form == "archive":
        path, md5 = found.paths[0], found.cifar.torchvision.tgz_md5
        if not check_integrity(str(path), md5):
            return path, f"is truncated or damaged: its md5 is not {md5}"
        return None
    for split, path in zip(PARQUETS, found.paths, strict=True):
        if download.is_ours(path) and not download.is_as_downloaded(path):
            return path, "is no longer as it was downloaded"
        try:
            _check_labels(found.cifar, split, path, _labels(found.cifar, path))
        except DataError as error:
            return path, str(error).removeprefix(f"{path} ")
    return None


def read(found: Found) -> dict[str, ImageSet]:
    """All images and labels, "train" (50,000) and "test" (10,000), in the official order.

    Raises:
        DataError: naming the damaged file.
    """
    if found.form == "parquet":
        return _read_parquets(found)
    if found.form == "folder":
        try:
            return _read_official(found.cifar, found.paths[0].parent)
        except RuntimeError as error:  # torchvision checks, and does not say which file it is
            wrong = problem(found) or (found.paths[0], f"cannot be read: {error}")
            raise DataError(" ".join(map(str, wrong))) from error
    # Into a folder of our own for a moment: a data root may be read only, and is not ours.
    with tempfile.TemporaryDirectory(prefix="cvattn-") as place:
        try:
            with tarfile.open(found.paths[0]) as archive:
                archive.extractall(place, filter="data")
            return _read_official(found.cifar, Path(place))
        except (tarfile.TarError, EOFError, zlib.error, RuntimeError) as error:
            raise DataError(
                f"{found.paths[0]} is truncated or damaged: {error}; get the archive again"
            ) from error


def has_official_pixels(found: Found, test: Tensor) -> bool | None:
    """Whether the test images, uint8 (N, 3, 32, 32), are the published ones; None: who knows."""
    if found.cifar.official_pixels is None:
        if found.form != "parquet":
            return True  # the official files, by their sums
        first = _column(found.cifar, found.paths[1], "img")[0].as_py()["bytes"]
        return False if first.startswith(b"\xff\xd8") else None  # JPEG loses something
    pixels = test[:1000].permute(0, 2, 3, 1).contiguous().numpy()
    return hashlib.sha256(pixels.tobytes()).hexdigest() == found.cifar.official_pixels


def _official(cifar: Cifar) -> list[tuple[str, str]]:
    """(file name, md5) of everything in the extracted folder that torchvision reads."""
    dataset = cifar.torchvision
    files = [(name, md5) for name, md5 in (*dataset.train_list, *dataset.test_list)]
    return [*files, (dataset.meta["filename"], dataset.meta["md5"])]


def _read_official(cifar: Cifar, root: Path) -> dict[str, ImageSet]:
    sets = {}
    for split in ("train", "test"):
        with warnings.catch_warnings():
            # The published pickles are of 2009; newer NumPy versions warn about their spelling.
            warnings.simplefilter("ignore")
            data = cifar.torchvision(root, train=split == "train", download=False)
        images = torch.from_numpy(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)))
        sets[split] = ImageSet(images, torch.tensor(data.targets))
    return sets


def _read_parquets(found: Found) -> dict[str, ImageSet]:
    import PIL

    cifar = found.cifar
    files = dict(zip(PARQUETS, found.paths, strict=True))
    labels = {split: _labels(cifar, path) for split, path in files.items()}
    for split, path in files.items():
        _check_labels(cifar, split, path, labels[split])

    def make() -> dict[str, np.ndarray]:
        return {split: _decode_parquet(cifar, path) for split, path in files.items()}

    shapes = {split: (cifar.counts[split], 3, 32, 32) for split in files}
    pixels, _ = cached(cifar.name, found.paths, f"Pillow {PIL.__version__}", shapes, make)
    return {
        split: ImageSet(torch.from_numpy(pixels[split]), torch.from_numpy(labels[split]))
        for split in files
    }


def _decode_parquet(cifar: Cifar, path: Path) -> np.ndarray:
    """All images of a parquet file, uint8 (N, 3, 32, 32)."""
    column = _column(cifar, path, "img")
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
    except Exception as error:  # of damaged files decoders raise nearly anything
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} is damaged: image {row} cannot be decoded: {reason}") from error
    if size != (32, 32):
        raise DataError(f"{path}: image {row} has {size} pixels (W, H), expected (32, 32)")
    return np.frombuffer(pixels, np.uint8).reshape(32, 32, 3)


def _labels(cifar: Cifar, path: Path) -> np.ndarray:
    # Copied: what Arrow hands out is read only, and torch wants to own its memory.
    return np.asarray(_column(cifar, path, cifar.label_column)).astype(np.int64)


def _check_labels(cifar: Cifar, split: str, path: Path, labels: np.ndarray) -> None:
    count = cifar.counts[split]
    if len(labels) != count:
        raise DataError(f"{path} holds {len(labels)} images, expected {count}")
    if cifar.label_hashes is not None:
        found = hashlib.sha256(labels.astype(np.uint8).tobytes()).hexdigest()
        if found != cifar.label_hashes[split]:
            raise DataError(f"{path} holds other labels than {cifar.title}'s, or in another order")
        return
    classes = len(cifar.classes)
    each = np.bincount(np.clip(labels, 0, classes), minlength=classes)
    if each.tolist() != [count // classes] * classes:
        raise DataError(
            f"{path} holds other labels than {cifar.title}'s, which has {count // classes} images "
            f"of each of {classes} classes"
        )


def _column(cifar: Cifar, path: Path, name: str) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        if name not in parquet.read_schema(path).names:
            raise DataError(f"{path} has no column {name!r}; is it {cifar.title}?")
        return parquet.read_table(path, columns=[name]).column(name)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is truncated or damaged: {error}") from error

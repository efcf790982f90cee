"""CIFAR-10 and CIFAR-100 on disk, in the forms that people have: finding, checking, reading.

Damage is reported with the file's name and, where the format knows it, the place in it.
"""

import hashlib
import tarfile
import tempfile
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cvattn.data import download
from cvattn.data.checks import DataError
from cvattn.data.images.base import ImageSet
from cvattn.data.images.cifar_facts import PARQUETS, Cifar
from cvattn.data.images.cifar_parquet import check_labels, column_of, labels_of, read_parquets


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
            check_labels(found.cifar, split, path, labels_of(found.cifar, path))
        except DataError as error:
            return path, str(error).removeprefix(f"{path} ")
    return None


def read(found: Found) -> dict[str, ImageSet]:
    """All images and labels, "train" (50,000) and "test" (10,000), in the official order.

    Raises:
        DataError: naming the damaged file.
    """
    if found.form == "parquet":
        return read_parquets(found.cifar, found.paths)
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
        first = column_of(found.cifar, found.paths[1], "img")[0].as_py()["bytes"]
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

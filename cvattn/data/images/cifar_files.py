"""CIFAR-10 and CIFAR-100 on disk, in the forms that people have: finding, checking, reading.

Damage is reported with the file's name and, where the format knows it, the place in it.
"""

import hashlib
import re
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cvattn.data import download
from cvattn.data.checks import DataError
from cvattn.data.images.base import ImageSet
from cvattn.data.images.cifar_facts import PARQUETS, Cifar
from cvattn.data.images.cifar_parquet import (
    check_labels,
    image_bytes,
    labels_of,
    read_parquets,
)
from cvattn.data.images.parquet_files import hub_places, parts_of
from cvattn.system import printable


@dataclass(frozen=True)
class Found:
    """One of the two in one form: "folder" (extracted), "archive" (.tar.gz) or "parquet".

    Attributes:
        path: the folder, the archive, or the folder that has the parquet files.
        parquets: the parts of train and of test, in order; empty in the other forms.
        near: what lies beside it, looks like it and is not read.
    """

    cifar: Cifar
    form: str
    path: Path
    parquets: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    near: tuple[Path, ...] = ()

    @property
    def words(self) -> str:
        """Where it is, for people."""
        kind = {
            "parquet": "parquet files in",
            "archive": "the official archive",
            "folder": "the official batches",
        }[self.form]
        return f"{kind} {self.path}{not_read(self.near)}"


def find(cifar: Cifar, root: Path) -> Found | None:
    """The best copy below a data root, by names alone; None where there is nothing.

    Looks in the root and in ``root/cifar10`` (or ``root/cifar100``): the extracted folder, the
    archive, then parquet files, as :mod:`cvattn.data.images.parquet_files` knows them. An
    incomplete copy counts only where no complete one is.

    Raises:
        DataError: some of the parquet files are there and others are not, and it is not our own
            unfinished download.
    """
    incomplete: Found | None = None
    missing: Path | None = None
    beside = near(cifar, root)
    for base in (root, root / cifar.name):
        folder = base / cifar.torchvision.base_folder
        if folder.is_dir():
            found = Found(cifar, "folder", folder, near=beside)
            if all((folder / name).is_file() for name, _ in _official(cifar)):
                return found
            incomplete = incomplete or found
        if (base / cifar.archive).is_file():
            return Found(cifar, "archive", base / cifar.archive, near=beside)
        for place in hub_places(base, cifar.name):
            parts = {split: parts_of(place, split) for split in PARQUETS}
            if not (there := [path for each in parts.values() for path in each.paths]):
                continue
            lacking = [
                each.missing or PARQUETS[split]
                for split, each in parts.items()
                if each.missing or not each.paths
            ]
            if not lacking:
                files = {split: each.paths for split, each in parts.items()}
                return Found(cifar, "parquet", place, files, beside)
            if not download.is_ours(there[0]):
                missing = missing or place / lacking[0]
    if incomplete is None and missing is not None:
        raise DataError(
            f"{missing} is missing, other parquet files of {cifar.title} are there; add it"
            + not_read(beside)
        )
    return incomplete


def near(cifar: Cifar, root: Path) -> tuple[Path, ...]:
    """What looks like this data by its name and is in none of the forms that are read."""
    known = {cifar.archive, cifar.torchvision.base_folder, cifar.name}
    # Ours, of downloads, and a Hub cache's own; what they hold is looked into.
    passed = re.compile(r"datasets--.*|\..*|.*\.(part|etag|downloaded\.json|damaged(-\d+)?)")
    alike = re.compile(rf"{cifar.name}(?!\d)|databatch")
    found = []
    for base in (root, root / cifar.name):
        for path in base.glob("*"):
            name = re.sub(r"[-_ ]", "", path.name.lower())
            if path.name not in known and alike.search(name) and not passed.fullmatch(path.name):
                found.append(path)
        for place in hub_places(base, cifar.name):
            read = {path for split in PARQUETS for path in parts_of(place, split).paths}
            found += [path for path in place.glob("*.parquet") if path not in read]
            found += place.glob("*.arrow")
    return tuple(sorted(set(found)))


def not_read(paths: tuple[Path, ...]) -> str:
    """A clause that names files which are near and not taken; "" if there are none."""
    if not paths:
        return ""
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return f" (near, but not read: {', '.join(printable(str(p)) for p in paths[:3])}{more})"


def problem(found: Found) -> tuple[Path, str] | None:
    """The first damaged file and what is wrong with it; None if all checksums agree.

    Costs under a second: checksums of the official files, label hashes of the parquet files (their
    pixels are only decoded by :func:`read`, unless we know their sha256 from a download).
    """
    from torchvision.datasets.utils import check_integrity

    if found.form == "folder":
        for name, md5 in _official(found.cifar):
            path = found.path / name
            if not path.is_file():
                return path, "is missing from the extracted archive"
            if not check_integrity(str(path), md5):
                return path, f"is damaged: its md5 is not {md5}"
        return None
    if found.form == "archive":
        path, md5 = found.path, found.cifar.torchvision.tgz_md5
        if not check_integrity(str(path), md5):
            return path, f"is truncated or damaged: its md5 is not {md5}"
        return None
    for split, paths in found.parquets.items():
        for path in paths:
            if download.is_ours(path) and not download.is_as_downloaded(path):
                return path, "is no longer as it was downloaded"
        path, labels = paths[0], []
        try:
            for path in paths:
                labels.append(labels_of(found.cifar, path))
            path = paths[0]
            check_labels(found.cifar, split, paths, np.concatenate(labels))
        except DataError as error:
            return path, str(error).removeprefix(f"{path} ")
    return None


def read(found: Found) -> dict[str, ImageSet]:
    """All images and labels, "train" (50,000) and "test" (10,000), in the official order.

    Raises:
        DataError: naming the damaged file.
    """
    if found.form == "parquet":
        return read_parquets(found.cifar, found.parquets)
    if found.form == "folder":
        try:
            return _read_official(found.cifar, found.path.parent)
        except RuntimeError as error:  # torchvision checks, and does not say which file it is
            wrong = problem(found) or (found.path, f"cannot be read: {error}")
            raise DataError(" ".join(map(str, wrong))) from error
    # Into a folder of our own for a moment: a data root may be read only, and is not ours.
    with tempfile.TemporaryDirectory(prefix="cvattn-") as place:
        try:
            with tarfile.open(found.path) as archive:
                archive.extractall(place, filter="data")
            return _read_official(found.cifar, Path(place))
        except (tarfile.TarError, EOFError, zlib.error, RuntimeError) as error:
            raise DataError(
                f"{found.path} is truncated or damaged: {error}; get the archive again"
            ) from error


def has_official_pixels(found: Found, test: Tensor) -> bool | None:
    """Whether the test images, uint8 (N, 3, 32, 32), are the published ones; None: who knows."""
    if found.cifar.official_pixels is None:
        if found.form != "parquet":
            return True  # the official files, by their sums
        first = image_bytes(found.cifar, found.parquets["test"][0])[0].as_py()
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

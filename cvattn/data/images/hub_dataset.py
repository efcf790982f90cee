"""Data sets of the `datasets` library: opened, their splits and columns found."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cvattn.data.checks import DataError
from cvattn.data.images.folder_files import named
from cvattn.system import did_you_mean, is_offline

# What people call the three parts.
_SPLITS = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


def open_dataset(path: str, config: str | None, revision: str | None) -> Mapping[str, Any]:
    """The splits of a folder that ``save_to_disk`` wrote, or of a data set on the Hub, by name.

    Raises:
        DataError: ``datasets`` is missing, a folder is something else or damaged, a name is not on
            the Hub, or downloads are forbidden.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"data=hf needs datasets ({error}): pip install 'cvattn[hf]'") from error
    folder = Path(path).expanduser().absolute()
    if folder.exists():
        found = _open_folder(datasets, folder, config, revision)
    else:
        found = _open_hub(datasets, path, folder, config, revision)
    return found if isinstance(found, datasets.DatasetDict) else {"train": found}


def _open_folder(datasets: Any, folder: Path, config: str | None, revision: str | None) -> Any:
    if config is not None or revision is not None:
        raise DataError(
            f"data.config and data.revision are of data sets on the Hub; data.path={folder} is on "
            "this machine"
        )
    try:
        return datasets.load_from_disk(str(folder))
    except FileNotFoundError as error:
        raise DataError(
            f"data.path={folder} was not written by save_to_disk ({error}); what else `datasets` "
            f"reads becomes such a folder by datasets.load_dataset({str(folder)!r})"
            ".save_to_disk(...)"
        ) from error
    except Exception as error:  # Arrow, JSON and fsspec have errors of their own
        raise DataError(f"data.path={folder} is damaged: {error}") from error


def _open_hub(
    datasets: Any, path: str, folder: Path, config: str | None, revision: str | None
) -> Any:
    if "://" in path or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise DataError(
            f"data.path={path}: {folder} does not exist; expected a folder that save_to_disk "
            "wrote, or a name on the Hub (owner/name)"
        )
    if is_offline():
        raise DataError(
            f"data.path={path} is no folder here, and CVATTN_OFFLINE forbids to look for it on the "
            "Hub; expected a folder that save_to_disk wrote"
        )
    try:
        return datasets.load_dataset(path, name=config, revision=revision)
    except Exception as error:  # of the network, the Hub, or a choice that is to be made
        raise DataError(
            f"data.path={path} is no folder here, and could not be had from the Hub: {error}"
        ) from error


def splits_of(there: Sequence[str], given: Mapping[str, str | None]) -> dict[str, str | None]:
    """Which split is "train", "val" and "test"; None where there is nothing to validate with.

    Args:
        there: the names of the splits.
        given: ``data.train``, ``data.val``, ``data.test``; None: by the usual names.

    Raises:
        DataError: one that is needed is missing, could be two, or is used twice.
    """
    found: dict[str, str | None] = {}
    for part, usual in _SPLITS.items():
        name = given[part]
        if name is not None and name not in there:
            raise DataError(f"data.{part}={name}: no such split{did_you_mean(name, there)}")
        candidates = [each for each in usual if each in there] if name is None else [name]
        if len(candidates) > 1:
            raise DataError(
                f"the splits {named(candidates)} could each be data.{part}; set it to one of them"
            )
        if not candidates and part != "val":
            raise DataError(
                f"there is no split {usual[0]!r} but {named(list(there))}; data.{part} names the "
                f"one to {'train' if part == 'train' else 'test'} with, or split the data set "
                "(train_test_split) and save it"
            )
        found[part] = candidates[0] if candidates else None
    used = [name for name in found.values() if name is not None]
    if twice := [name for name in used if used.count(name) > 1]:
        raise DataError(f"the split {twice[0]!r} is used for two parts: {found}")
    return found


def columns_of(split: Any, image: str | None, label: str | None, where: str) -> tuple[str, str]:
    """The columns of pictures and of labels, by their features where they are not given.

    Raises:
        DataError: there is none, there are several, or a given one is of another kind.
    """
    import datasets

    features = split.features
    image = _column(
        features, image, where, "image_column", "pictures", lambda f: isinstance(f, datasets.Image)
    )
    label = _column(
        features,
        label,
        where,
        "label_column",
        "classes (ClassLabel)",
        lambda f: isinstance(f, datasets.ClassLabel),
        _is_label,
    )
    return image, label


def _column(
    features: Any, given: str | None, where: str, setting: str, what: str, *kinds: Any
) -> str:
    """The one column of the first kind; a given one may be of any of them."""
    there = ", ".join(f"{name} ({feature})" for name, feature in features.items())
    if given is not None:
        if given not in features:
            raise DataError(f"data.{setting}={given}: {where} has no such column; it has {there}")
        if not any(kind(features[given]) for kind in kinds):
            raise DataError(f"data.{setting}={given} is no column of {what}: {features[given]}")
        return given
    found = [name for name, feature in features.items() if kinds[0](feature)]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{where} has several columns of {what}: {', '.join(found)}; data.{setting} says which"
        )
    raise DataError(f"{where} has no column of {what}; data.{setting} names one of {there}")


def labels_of(split: Any, column: str, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The labels of a split: int64 (N,), positions in the texts that are returned with them.

    Raises:
        DataError: rows without a label.
    """
    import datasets

    feature = split.features[column]
    classes = isinstance(feature, datasets.ClassLabel)
    found = split.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    missing = [i for i, value in enumerate(found) if value is None or (classes and value < 0)]
    if missing:
        raise DataError(
            f"{where}: {len(missing)} rows have no label in {column!r}, such as row {missing[0]} "
            f"({found[missing[0]]}); leave them out, or choose another split"
        )
    if classes:
        return np.array(found, np.int64), tuple(feature.names)
    numbers: dict[str, int] = {}
    codes = [numbers.setdefault(str(value), len(numbers)) for value in found]
    return np.array(codes, np.int64), tuple(numbers)


def _is_label(feature: Any) -> bool:
    """Whether values are whole numbers or names."""
    kind = str(getattr(feature, "dtype", ""))
    return kind.startswith(("int", "uint")) or kind in ("bool", "string", "large_string")

"""Tables of images with several labels each: CSV files, read and checked."""

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cvattn.data.checks import DataError
from cvattn.data.images.folder_files import for_validation, listed, named
from cvattn.system import did_you_mean, printable

PARTS = ("train", "val", "test")
_ONE_TABLE = "labels.csv"
_FILE, _LABELS, _SPLIT = "file", "labels", "split"
_FORMS = (
    "expected a first line file,cat,dog,... over rows a.jpg,0,1,..., or file,labels over rows "
    "a.jpg,cat;dog"
)


@dataclass(frozen=True)
class LabelTable:
    """What the tables of a folder hold.

    Attributes:
        classes: the labels' names.
        files: of each part, the image files with the labels that each has, as numbers.
        notes: what is to be said of them.
    """

    classes: tuple[str, ...]
    files: dict[str, list[tuple[Path, tuple[int, ...]]]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Row:
    place: str  # "train.csv, line 7"
    file: str
    part: str
    labels: tuple[str, ...]


def read_tables(root: Path) -> LabelTable:
    """``train.csv``, ``test.csv`` and perhaps ``val.csv`` of a folder, or its ``labels.csv``.

    Raises:
        DataError: none or both of these; a table that is no such table; files that are not there or
            named twice; a label that no training image has, or no label of its own; nothing to
            validate with.
    """
    rows, columns = _all_rows(root)
    _check_files(root, rows)
    parts = {part: [row for row in rows if row.part == part] for part in PARTS}
    for part in ("train", "test"):
        if not parts[part]:
            raise DataError(f"{root}: no image is for {part}; there are {_counts(parts)}")
    if columns is None:  # names in a column: those of the training images
        classes = tuple(sorted({label for row in parts["train"] for label in row.labels}))
        _check_known(classes, [*parts["val"], *parts["test"]])
    else:
        classes = columns
    if len(classes) < 2:
        raise DataError(
            f"{root}: {len(classes)} labels ({named(classes)}); expected 2 or more. One label that "
            "is there or not makes two classes: data=folder, with a folder for each"
        )
    if not parts["val"]:
        chosen = for_validation([root / row.file for row in parts["train"]], root / "any")
        if not chosen:
            raise DataError(f"{root}: one training image, and nothing to validate with")
        parts["val"] = [row for row in parts["train"] if root / row.file in chosen]
        parts["train"] = [row for row in parts["train"] if root / row.file not in chosen]
    number = {label: index for index, label in enumerate(classes)}
    files = {
        part: [
            (root / row.file, tuple(sorted({number[label] for label in row.labels})))
            for row in some
        ]
        for part, some in parts.items()
    }
    return LabelTable(classes, files, tuple(_missing(classes, files)))


def _all_rows(root: Path) -> tuple[list[_Row], tuple[str, ...] | None]:
    """All rows, and the labels that are columns; None where they stand in one column."""
    if not root.is_dir():
        raise DataError(f"data.root={root} is not a folder; expected one with train.csv in it")
    separate = [part for part in PARTS if (root / f"{part}.csv").is_file()]
    if (root / _ONE_TABLE).is_file():
        if separate:
            raise DataError(
                f"{root} has {_ONE_TABLE} and {separate[0]}.csv: expected either one table with a "
                "column split, or one for each part"
            )
        return _rows(root / _ONE_TABLE, None)
    for part in ("train", "test"):
        if part not in separate:
            there = sorted(path.name for path in root.glob("*.csv"))
            raise DataError(
                f"{root / part}.csv is missing; expected train.csv, test.csv and perhaps val.csv, "
                f"or {_ONE_TABLE} with a column split; there are: {', '.join(there) or 'no tables'}"
            )
    rows, first = [], None
    for part in separate:
        found, columns = _rows(root / f"{part}.csv", part)
        if part == separate[0]:
            first = columns
        elif (columns and sorted(columns)) != (first and sorted(first)):
            raise DataError(
                f"{root / part}.csv has the labels {_told(columns)}, {separate[0]}.csv has "
                f"{_told(first)}: they must be the same"
            )
        rows += found
    return rows, first


def _rows(path: Path, part: str | None) -> tuple[list[_Row], tuple[str, ...] | None]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, strict=True, skipinitialspace=True)
            header = [name.strip() for name in next(lines, [])]
            columns = _columns(path, header, one_table=part is None)
            cells = [(lines.line_num, line) for line in lines if any(map(str.strip, line))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    rows, bad = [], []
    for line, values in cells:
        place = f"{path.name}, line {line}"
        if len(values) != len(header):
            bad.append((place, f"{len(values)} values for {len(header)} columns"))
            continue
        row = dict(zip(header, map(str.strip, values), strict=True))
        row_part = part or row[_SPLIT]
        if row_part not in PARTS:
            hint = did_you_mean(row_part, PARTS)
            bad.append((place, f"split {row_part!r} is none of {', '.join(PARTS)}{hint}"))
        if not row[_FILE] or os.path.isabs(row[_FILE]):
            bad.append((place, f"file {row[_FILE]!r}; expected a name from the folder on"))
        for name in columns or ():
            if row[name] not in ("0", "1"):
                bad.append((place, f"{name} is {row[name]!r}; expected 0 or 1"))
        if columns is None:
            labels = tuple(filter(None, map(str.strip, re.split(r"[;|]", row[_LABELS]))))
        else:
            labels = tuple(name for name in columns if row[name] == "1")
        rows.append(_Row(place, row[_FILE], row_part, labels))
    if bad:
        raise DataError(f"{path} has {len(bad)} mistakes:{listed(bad)}")
    return rows, columns


def _columns(path: Path, header: Sequence[str], *, one_table: bool) -> tuple[str, ...] | None:
    """The columns that are labels; None where their names stand in one column."""
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice or not all(header):
        what = f"{named(twice)} twice" if twice else "a column without a name"
        raise DataError(f"{path}: the first line has {what}")
    if _FILE not in header:
        hint = "; its values are separated by semicolons" if ";" in ",".join(header[:1]) else ""
        raise DataError(f"{path}: no column {_FILE!r} among {named(header)}{hint}; {_FORMS}")
    if one_table and _SPLIT not in header:
        raise DataError(f"{path}: no column {_SPLIT!r}, which says train, val or test of each row")
    if not one_table and _SPLIT in header:
        raise DataError(f"{path}: a column {_SPLIT!r}, and the table is for one part; leave it out")
    rest = tuple(name for name in header if name not in (_FILE, _SPLIT))
    if _LABELS not in rest:
        if not rest:
            raise DataError(f"{path}: no labels; {_FORMS}")
        return rest
    if len(rest) > 1:
        others = [name for name in rest if name != _LABELS]
        raise DataError(
            f"{path}: unknown columns {named(others)}: beside {_LABELS!r}, which has the names, "
            f"there are {_FILE!r} and, in {_ONE_TABLE}, {_SPLIT!r}"
        )
    return None


def _check_files(root: Path, rows: Sequence[_Row]) -> None:
    seen: dict[str, str] = {}
    twice, missing = [], []
    for row in rows:
        path = os.path.normpath(root / row.file)
        if path in seen:
            twice.append((row.place, f"{printable(row.file)} was named in {seen[path]}"))
        elif not os.path.isfile(path):
            missing.append((row.place, f"there is no file {printable(path)}"))
        seen.setdefault(path, row.place)
    if missing:
        raise DataError(
            f"{len(missing)} images of the tables in {root} are missing (names are from that "
            f"folder on):{listed(missing)}"
        )
    if twice:
        raise DataError(
            f"{len(twice)} images come twice in the tables in {root}; each belongs to one part, in "
            f"one row with all of its labels:{listed(twice)}"
        )


def _check_known(classes: Sequence[str], rows: Iterable[_Row]) -> None:
    strange = [
        (row.place, f"{label!r}, which no training image has{did_you_mean(label, classes)}")
        for row in rows
        for label in row.labels
        if label not in classes
    ]
    if strange:
        raise DataError(f"{len(strange)} unknown labels:{listed(strange)}")


def _missing(classes: Sequence[str], files: Mapping[str, Sequence]) -> Iterable[str]:
    """What is to be said of labels without an image, in the parts that judge.

    Raises:
        DataError: of the training part.
    """
    for part, some in files.items():
        there = {label for _, labels in some for label in labels}
        absent = [name for index, name in enumerate(classes) if index not in there]
        if absent and part == "train":
            raise DataError(
                f"no training image has the label {named(absent)}, so there is nothing to learn of "
                "it: leave it out, or add images (a tenth of them validates where there is no "
                "val.csv)"
            )
        if absent:
            yield f"no image of {part} has the label {named(absent)}, which does not count there"


def _counts(parts: Mapping[str, Sequence]) -> str:
    return ", ".join(f"{len(rows)} for {part}" for part, rows in parts.items())


def _told(columns: Sequence[str] | None) -> str:
    return "in one column" if columns is None else f"in the columns {named(sorted(columns))}"

"""What a shard holds: for each sample its key, where its picture lies in the tar file, its label.

A shard (as webdataset writes them) is a tar file in which the files of one sample have one name up
to the first dot. webdataset's own iterator reads it from the front and knows no positions, ends
quietly where an archive was cut between two files, and passes over what is not named as it expects;
so positions and the archive's end are seen to here, and only names are split by its function.
"""

import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any

import numpy as np

from cvattn.data.checks import DataError
from cvattn.data.image_files import is_hidden
from cvattn.system import printable

_REMARK = re.compile(r"__[^/]*__($|/)")  # webdataset's own, on a shard
_BLOCK = 512
_MOST_LABEL = 4096  # bytes; a label is a number or a name
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Names(Sequence[str]):
    """Strings, in one run of bytes: a million small objects would take ten times the memory."""

    def __init__(self, joined: np.ndarray, ends: np.ndarray) -> None:
        self.joined, self.ends = joined, ends

    @classmethod
    def of(cls, names: Sequence[str]) -> "Names":
        parts = [name.encode("utf-8", "surrogateescape") for name in names]
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        return cls(np.frombuffer(b"".join(parts), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        start = self.ends[at - 1] if at else 0
        return self.joined[start : self.ends[at]].tobytes().decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard, in its order.

    Attributes:
        keys: their names.
        offsets, sizes: of their pictures in bytes, int64 (N,).
        labels: their labels as they are written, int64 (N,): positions in ``texts``.
        texts: the different labels.
        left: some of what is in it and is not read.
        left_count: how much that is.
    """

    keys: Names
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    texts: tuple[str, ...]
    left: tuple[str, ...]
    left_count: int


@dataclass
class _Sample:
    suffixes: list[str] = field(default_factory=list)
    picture: tarfile.TarInfo | None = None
    rank: int = 0  # of the picture's suffix among those asked for
    label: str | None = None


def index_shard(
    file: IO[bytes], place: str, image_keys: Sequence[str], label_key: str
) -> ShardIndex:
    """Read a shard's headers and labels.

    Args:
        file: the shard, seekable.
        place: its address, for messages.
        image_keys: the suffixes of pictures; of several in a sample the first of these is read.
        label_key: the suffix of labels.

    Raises:
        DataError: it is empty, no tar archive, compressed, cut or damaged, or has samples with a
            picture and no label, or the other way round, or something twice.
    """
    _check_beginning(file, place)
    samples: dict[str, _Sample] = {}
    left: list[str] = []
    try:
        with tarfile.open(
            fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape"
        ) as archive:
            while (member := archive.next()) is not None:
                _add(samples, left, archive, member, place, image_keys, label_key)
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            end = archive.offset
    except tarfile.TarError as error:
        raise DataError(f"{place} is truncated, damaged or no tar archive: {error}") from error
    _check_end(file, end, place)
    whole = {}
    for key, sample in samples.items():
        if sample.picture is None and sample.label is None:
            left += [f"{key}.{suffix}" for suffix in sample.suffixes]
        else:
            whole[key] = sample
    _check_samples(whole, place, image_keys, label_key, left)
    numbers: dict[str, int] = {}
    labels = [numbers.setdefault(str(each.label), len(numbers)) for each in whole.values()]
    pictures = [each.picture for each in whole.values() if each.picture is not None]
    return ShardIndex(
        keys=Names.of(list(whole)),
        offsets=np.array([each.offset_data for each in pictures], np.int64),
        sizes=np.array([each.size for each in pictures], np.int64),
        labels=np.array(labels, np.int64),
        texts=tuple(numbers),
        left=tuple(left[:3]),
        left_count=len(left),
    )


def _add(
    samples: dict[str, _Sample],
    left: list[str],
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    place: str,
    image_keys: Sequence[str],
    label_key: str,
) -> None:
    from webdataset.tariterators import base_plus_ext

    if member.isdir():
        return
    key, suffix = base_plus_ext(member.name)
    hidden = any(is_hidden(part) for part in PurePosixPath(member.name).parts)
    if key is None or hidden or _REMARK.match(member.name):
        left.append(member.name)
        return
    suffix = suffix.lower()
    wanted = suffix in image_keys or suffix == label_key
    if wanted and (not member.isreg() or member.issparse()):
        raise DataError(
            f"{_at(place, member.name)} is a link, sparse or no file; write the archive with the "
            "files themselves (tar --hard-dereference --dereference)"
        )
    sample = samples.setdefault(key, _Sample())
    if suffix in sample.suffixes:
        raise DataError(
            f"{_at(place, member.name)} is there twice; which of the two is meant cannot be known: "
            "write the shard anew"
        )
    sample.suffixes.append(suffix)
    if suffix == label_key:
        sample.label = _label(archive, member, place)
    elif wanted:
        rank = image_keys.index(suffix)
        if sample.picture is None or rank < sample.rank:
            sample.picture, sample.rank = member, rank


def _label(archive: tarfile.TarFile, member: tarfile.TarInfo, place: str) -> str:
    where = _at(place, member.name)
    if member.size > _MOST_LABEL:
        raise DataError(f"{where} has {member.size} bytes; expected a label: a number or a name")
    content = archive.extractfile(member)
    try:
        text = content.read().decode("utf-8").strip() if content is not None else ""
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is no text; expected a label: a number or a name") from error
    if not text:
        raise DataError(f"{where} is empty; expected a label: a number or a name")
    return text


def _check_beginning(file: IO[bytes], place: str) -> None:
    start = file.read(8)
    file.seek(0)
    if not start:
        raise DataError(f"{place} is empty (0 bytes)")
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise DataError(
                f"{place} is compressed ({name}): its pictures cannot be reached one by one; "
                "decompress it, pictures are compressed already"
            )


def _check_end(file: IO[bytes], end: int, place: str) -> None:
    """After the last file come zeros and nothing else; where tarfile stops, it does not say why."""
    file.seek(end)
    block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        raise DataError(
            f"{place} is truncated: it ends at byte {end + len(block)} without the mark that "
            "ends a tar archive"
        )
    at = end
    while block:
        if block.strip(b"\0"):
            what = "no file's header is there" if at == end else "something follows its end mark"
            raise DataError(
                f"{place} is damaged, or several archives in one, at byte {at}: {what}; write it "
                "anew"
            )
        at += len(block)
        block = file.read(1 << 20)


def _check_samples(
    samples: dict[str, _Sample],
    place: str,
    image_keys: Sequence[str],
    label_key: str,
    left: Sequence[str],
) -> None:
    if not samples:
        there = f"; it has {', '.join(map(printable, left[:3]))}" if left else ""
        raise DataError(
            f"{place} holds no samples: nothing in it ends in {_dotted(image_keys)} or "
            f".{label_key}{there}"
        )
    for what, keys, setting in (
        ("picture", image_keys, "image_key"),
        ("label", [label_key], "label_key"),
    ):
        lacking = [k for k, s in samples.items() if _lacks(s, what)]
        if lacking:
            first = lacking[0]
            has = ", ".join(f".{each}" for each in samples[first].suffixes)
            raise DataError(
                f"{place}: {len(lacking)} of {len(samples)} samples have no {what} "
                f"({_dotted(keys)}), such as {printable(first)!r}, which has {has}; data.{setting} "
                "says what it ends in"
            )


def _lacks(sample: _Sample, what: str) -> bool:
    return (sample.picture if what == "picture" else sample.label) is None


def _dotted(keys: Sequence[str]) -> str:
    return " ".join(f".{each}" for each in keys)


def _at(place: str, name: str) -> str:
    return f"{place}: {printable(name)}"

"""Images in shards, as webdataset writes them, on this machine or on a server."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cvattn.data.checks import DataError, check_int
from cvattn.data.images.folder_files import named
from cvattn.data.images.label_names import LabelNames, read_classes
from cvattn.data.images.shard_cache import copies_of, indices_of
from cvattn.data.images.shard_index import ShardIndex
from cvattn.data.images.shard_places import Shard, shards_of
from cvattn.data.images.shards import ShardSource
from cvattn.data.images.sourced import SourceDataModule
from cvattn.data.images.sources import Chosen, ImageSource
from cvattn.data.info import DataInfo
from cvattn.data.locality import Locality
from cvattn.data.split import held_out
from cvattn.system import printable


@dataclass(frozen=True)
class _Listing:
    """What the shards hold, and what is to be said of them."""

    classes: tuple[str, ...]
    sources: dict[str, ImageSource]
    file_of: Tensor  # the shard of each training sample
    source: str


class WebDatasetData(SourceDataModule):
    """Images of any size in shards: tar files in which a sample's files have one name.

    Any sample is read at any time, by its place in its shard, which is looked up once and kept in
    the cache folder; so order, augmentation and going on within an epoch are functions of (seed,
    epoch, position), as for all data here. webdataset's own reading from the front, with a buffer
    to shuffle in, cannot give that.

    Without ``val`` a tenth of each class is taken from ``train`` to validate, by the samples' keys.
    The classes are those of the training samples, or ``classes``.

    Args:
        train, val, test: paths or addresses of shards, see
            :func:`cvattn.data.images.shard_places.shards_of`. ``val`` may be None.
        image_key: what pictures end in, several with ``;`` between them; of those that a sample has
            the first is read.
        label_key: what labels end in: text files with a number or a class name each.
        classes: the class names, or the path of a text file with one in each line; numbers as
            labels count them from 0. None: the names, or numbers, found in ``train``.
        copy_shards: copy those on servers into the cache folder, once; otherwise each picture is
            fetched when it is read.
        shards_at_once: shards whose samples are mixed in training; see
            :class:`cvattn.data.locality.Locality`. 0: all.
        others: as in :class:`SourceDataModule`, which also says how an image is read.
    """

    data_name = "webdataset"

    def __init__(
        self,
        *,
        train: str | Sequence[str] | None = None,
        val: str | Sequence[str] | None = None,
        test: str | Sequence[str] | None = None,
        image_key: str = "jpg;jpeg;png;webp",
        label_key: str = "cls",
        classes: str | Sequence[str] | None = None,
        copy_shards: bool = False,
        shards_at_once: int = 8,
        image_size: int | Sequence[int] = 64,
        channels: int = 3,
        hold: str = "memory",
        workers: int | None = None,
        stored_size: int | None = None,
        on_corrupt: str = "refuse",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        seed: int = 0,
        crop_pad: int = 4,
        flip: str = "random",
        cutout: int = 0,
        random_resized_crop: Sequence[float] | None = None,
        rand_augment: int = 0,
        rand_augment_magnitude: int = 9,
        trivial_augment: bool = False,
        color_jitter: float = 0.0,
        random_erasing: float = 0.0,
        transforms: Sequence[Callable[[Tensor], Tensor]] = (),
        balanced_sampling: bool = False,
        test_views: str = "none",
    ) -> None:
        super().__init__(
            image_size=image_size,
            channels=channels,
            hold=hold,
            workers=workers,
            stored_size=stored_size,
            on_corrupt=on_corrupt,
            mean=mean,
            std=std,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seed=seed,
            crop_pad=crop_pad,
            flip=flip,
            cutout=cutout,
            random_resized_crop=random_resized_crop,
            rand_augment=rand_augment,
            rand_augment_magnitude=rand_augment_magnitude,
            test_views=test_views,
            trivial_augment=trivial_augment,
            color_jitter=color_jitter,
            random_erasing=random_erasing,
            transforms=transforms,
            balanced_sampling=balanced_sampling,
        )
        self._given = {"train": train, "val": val, "test": test}
        self._image_keys = [each.strip().lstrip(".").lower() for each in image_key.split(";")]
        self._label_key = label_key.strip().lstrip(".").lower()
        if not all(self._image_keys) or not self._label_key:
            raise ValueError(f"image_key={image_key!r} and label_key={label_key!r} name suffixes")
        if self._label_key in self._image_keys:
            raise ValueError(f"label_key={label_key!r} is one of image_key={image_key!r}, too")
        self._classes = classes
        if not isinstance(copy_shards, bool):
            raise TypeError(f"copy_shards must be true or false, got {copy_shards!r}")
        self.copy_shards = copy_shards
        self.shards_at_once = check_int("shards_at_once", shards_at_once, minimum=0)
        if balanced_sampling and self.shards_at_once:
            raise ValueError(
                f"balanced_sampling=true takes images of all shards in turn, and shards_at_once="
                f"{self.shards_at_once} of some: with shards_at_once=0 all are mixed"
            )
        self._listing: _Listing | None = None

    def describe(self) -> DataInfo:
        """From the shards' indices, made now if they were not; the first time reads all headers.

        Raises:
            DataError: shards are missing, odd (:func:`cvattn.data.images.shard_index.index_shard`)
                or in two parts, a label means no class, or there is nothing to validate with.
        """
        return super().describe()

    def _describe(self) -> DataInfo:
        listing = self._list()
        train, val, test = (len(listing.sources[part]) for part in ("train", "val", "test"))
        return DataInfo(
            name=self.data_name,
            classes=listing.classes,
            channels=self.channels,
            image_size=self.image_size,
            mean=self._mean,
            std=self._std,
            train_size=train,
            val_size=val,
            test_size=test,
            source=listing.source,
        )

    def _where(self) -> str:
        given = (f"data.{part}={each}" for part, each in self._given.items() if each is not None)
        return f"shards {', '.join(given)}"

    def _sources(self) -> Mapping[str, ImageSource]:
        return self._list().sources

    def _locality(self, part: str, good: Tensor) -> Locality | None:
        if part != "train":
            return None
        return Locality(self._list().file_of[good], self.shards_at_once)

    def _list(self) -> _Listing:
        if self._listing is None:
            given = [part for part in self._given if self._is_given(part)]
            shards = {part: self._shards(part) for part in given}
            _check_apart(shards)
            if self.copy_shards:
                shards = {part: copies_of(each) for part, each in shards.items()}
            indices = {
                part: indices_of(each, self._image_keys, self._label_key)
                for part, each in shards.items()
            }
            found = sorted({text for index in indices["train"] for text in index.texts})
            names = LabelNames.of(found, read_classes(self._classes), "data.train")
            whole = {part: ShardSource(shards[part], indices[part], names) for part in shards}
            sources: dict[str, ImageSource] = dict(whole)
            file_of = whole["train"].shard_of
            if "val" not in whole:
                kept, held = _parted(whole["train"])
                sources["train"] = Chosen(whole["train"], kept)
                sources["val"] = Chosen(whole["train"], held)
                file_of = file_of[kept]
            notes = _notes(names.classes, sources, indices, file_of, self.shards_at_once)
            count = sum(map(len, shards.values()))
            source = "; ".join((f"{count} shards, {printable(str(self._given['train']))}", *notes))
            self._listing = _Listing(names.classes, sources, file_of, source)
        return self._listing

    def _is_given(self, part: str) -> bool:
        if self._given[part] is not None:
            return True
        if part == "val":
            return False
        raise DataError(
            f"data.{part} names no shards; expected their paths, such as "
            f"'data.{part}=\"/data/{part}-{{000000..000012}}.tar\"'"
        )

    def _shards(self, part: str) -> list[Shard]:
        given = self._given[part]
        assert given is not None
        return shards_of(given, f"data.{part}")


def _check_apart(shards: Mapping[str, Sequence[Shard]]) -> None:
    """Raise DataError if a shard is in two parts."""
    parts = defaultdict(list)
    for part, each in shards.items():
        for shard in each:
            parts[shard.address].append(f"data.{part}")
    if both := [address for address, where in parts.items() if len(where) > 1]:
        raise DataError(f"{named(both)} is in {' and in '.join(parts[both[0]])}")


def _parted(source: ShardSource) -> tuple[Tensor, Tensor]:
    """Positions of what is trained on, and of the tenth of each class that is held out."""
    chosen = torch.zeros(len(source), dtype=torch.bool)
    for label in source.labels.unique().tolist():
        members = (source.labels == label).nonzero().squeeze(1)
        keys = [source.key(at).encode("utf-8", "surrogateescape") for at in members.tolist()]
        chosen[members[held_out(keys)]] = True
    if not chosen.any():
        raise DataError(
            "there is nothing to validate with: of each class of data.train with 2 samples or more "
            "a tenth is taken for it, and no class has 2; add samples, or set data.val"
        )
    return (~chosen).nonzero().squeeze(1), chosen.nonzero().squeeze(1)


def _notes(
    classes: Sequence[str],
    sources: Mapping[str, ImageSource],
    indices: Mapping[str, Sequence[ShardIndex]],
    file_of: Tensor,
    at_once: int,
) -> list[str]:
    """What is missing, passed over or badly mixed, for people."""
    notes = []
    for part in indices:
        there = set(sources[part].labels.tolist())
        if missing := [name for at, name in enumerate(classes) if at not in there]:
            notes.append(f"data.{part} has no images of {named(missing)}")
    every = [index for each in indices.values() for index in each]
    if count := sum(index.left_count for index in every):
        first = printable(next(index.left[0] for index in every if index.left_count))
        such = first if count == 1 else f"{count}, such as {first}"
        notes.append(f"not read, because hidden or of no sample: {such}")
    files = int(file_of.max()) + 1
    if 0 < at_once < files:
        pairs = torch.stack([file_of, sources["train"].labels]).unique(dim=1)
        most = int(pairs[0].bincount().max())
        if most * at_once < len(classes):
            notes.append(
                f"no shard has more than {most} of {len(classes)} classes, so batches are badly "
                f"mixed with data.shards_at_once={at_once}: set it to 0, or mix the shards"
            )
    return notes

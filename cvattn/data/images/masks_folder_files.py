"""A folder of images and a folder of their masks: which belong together."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cvattn.data.checks import DataError
from cvattn.data.image_files import image_files, left_out
from cvattn.data.images.folder_files import named
from cvattn.system import did_you_mean

IMAGES, MASKS = "images", "masks"
Pair = tuple[Path, Path]  # of an image and its mask


class Pairs(NamedTuple):
    """Of ``train/``, ``val/`` or ``test/``, sorted.

    Attributes:
        left: in words, files that are not read; "" if there are none.
    """

    files: list[Pair]
    left: str


def pairs_of(root: Path, name: str) -> Pairs:
    """Each image of ``root/name/images`` with the mask of its name in ``root/name/masks``.

    Names are compared without their suffixes, and with the folders below.

    Raises:
        DataError: a folder is missing, cannot be read or is empty; an image without a mask; two
            files of one name.
    """
    places = [_folder(root, name, kind) for kind in (IMAGES, MASKS)]
    try:
        images, masks = (image_files(place) for place in places)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
    hidden = [left_out(listing.left) for listing in (images, masks)]
    for place, listing in zip(places, (images, masks), strict=True):
        if not listing.paths:
            raise DataError(f"{place} has no image files; {_EXPECTED}")
    pictures, found = (
        _by_name(listing.paths, place)
        for listing, place in zip((images, masks), places, strict=True)
    )
    missing = [each for each in pictures if each not in found]
    if missing:
        near = did_you_mean(missing[0], list(found))
        near = near if near.startswith("; did you mean") else ""
        raise DataError(
            f"{len(missing)} of {len(pictures)} images of {places[0]} have no mask in "
            f"{places[1]}: {named(missing)}{near}; a mask has the name of its image, whatever the "
            "suffix. Add the masks, or take these images out"
        )
    alone = [each for each in found if each not in pictures]
    if alone:
        hidden.append(f"{len(alone)} masks without an image: {named(alone)}")
    left = "; ".join(f"{name}/: {text}" for text in hidden if text)
    return Pairs([(path, found[each]) for each, path in pictures.items()], left)


_EXPECTED = (
    f"expected train/{IMAGES}/NAME.jpg and train/{MASKS}/NAME.png, and the same below test/ (and "
    "val/); a folder of another name can be linked"
)


def _folder(root: Path, name: str, kind: str) -> Path:
    place = root / name / kind
    if place.is_dir():
        return place
    for folder in (root, root / name):
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder; {_EXPECTED}{_there(folder.parent)}")
    raise DataError(f"{place} is missing; {_EXPECTED}{_there(root / name)}")


def _there(folder: Path) -> str:
    if not folder.is_dir():
        return ""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    return f"; {folder} has {named(names) or 'no folders'}"


def _by_name(paths: Sequence[Path], place: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        key = path.relative_to(place).with_suffix("").as_posix()
        if key in found:
            raise DataError(
                f"{found[key]} and {path} have one name, and it is not clear which one is meant; "
                "take one out"
            )
        found[key] = path
    return found

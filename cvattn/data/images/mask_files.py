"""Mask files: the value of each pixel as it is stored, and what the values mean."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cvattn.data.checks import DataError
from cvattn.data.image_files import ImageError
from cvattn.data.info import VOID

# Without loss: JPEG's blocks and WebP's would make values that nobody wrote.
_FORMATS = ("PNG", "BMP", "GIF", "TIFF", "PPM")
_MOST_SHOWN = 10


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """The values of a mask file, uint8 (H, W): of a palette its indices, never its colours.

    Turned upright (EXIF). Grey that is stored as RGB is grey.

    Raises:
        ImageError: missing, damaged, of a format that loses values, in colours, with values above
            255, or partly transparent; the text says what to do.
    """
    try:
        with Image.open(path) as file:
            if file.format not in _FORMATS:
                raise ImageError(
                    f"a mask as {file.format} has lost its values: save masks as PNG, from where "
                    "they were made"
                )
            return _values(ImageOps.exif_transpose(file))
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except UnidentifiedImageError:
        raise ImageError("not an image, or damaged at its beginning") from None
    except Exception as error:  # of damaged files decoders raise nearly anything
        raise ImageError(str(error) or type(error).__name__) from error


def _values(picture: Image.Image) -> np.ndarray:
    if picture.mode in ("LA", "RGBA", "PA"):
        if np.asarray(picture.getchannel("A")).min() < 255:
            raise ImageError(
                "transparent pixels have no value: save the mask as a grey or palette PNG, without "
                "transparency"
            )
        picture = picture.convert({"LA": "L", "RGBA": "RGB", "PA": "P"}[picture.mode])
    values = np.array(picture)
    if picture.mode in ("L", "P", "1"):
        return values.astype(np.uint8)
    if picture.mode == "RGB":
        if (values == values[..., :1]).all():
            return values[..., 0].copy()
        raise ImageError(
            "in colours (RGB), where a value for each class is wanted: save it as a palette PNG, "
            "whose indices are the classes, or in grey"
        )
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        if values.min() >= 0 and values.max() <= 255:
            return values.astype(np.uint8)
        raise ImageError(
            f"values from {values.min()} to {values.max()}: those of masks are 0 to 255, one for "
            "each class"
        )
    raise ImageError(f"pixels of the kind {picture.mode!r}; expected grey or a palette")


def cut_mask(values: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W) as :func:`cvattn.data.image_files.cut` does it, by the nearest pixels."""
    height, width = image_size
    picture = Image.fromarray(values)
    return np.array(ImageOps.fit(picture, (width, height), Image.Resampling.NEAREST))


def values_of(values: np.ndarray) -> frozenset[int]:
    """Which values there are."""
    return frozenset(np.flatnonzero(np.bincount(values.ravel(), minlength=256)).tolist())


@dataclass(frozen=True)
class MaskCode:
    """What the values of mask files mean.

    Attributes:
        values: of each class, in their order.
        void: of pixels without a class; None: there are none.
        note: what was found out from the masks rather than given, for people.
    """

    values: tuple[int, ...]
    void: int | None
    note: str = ""

    def decode(self, values: np.ndarray) -> np.ndarray:
        """uint8 (H, W) of a file -> of classes and :data:`VOID`.

        Raises:
            ImageError: values that mean nothing, which are named.
        """
        table = np.full(256, -1, dtype=np.int16)
        table[list(self.values)] = np.arange(len(self.values))
        if self.void is not None:
            table[self.void] = VOID
        unknown = sorted(value for value in values_of(values) if table[value] < 0)
        if unknown:
            void = "" if self.void is None else f", {self.void} for void"
            raise ImageError(
                f"values {shown(unknown)} mean nothing: the classes are {shown(self.values)}{void}"
                "; data.values=[...] says which value each class has, data.void= which has none"
            )
        return table[values].astype(np.uint8)

    def encode(self, classes: np.ndarray) -> np.ndarray:
        """The other way round, for classes without :data:`VOID`."""
        return np.array(self.values, dtype=np.uint8)[classes]


def given_code(
    count: int | None, values: Sequence[int] | None, void: int | None
) -> MaskCode | None:
    """What is said of the values; None: they have to be looked at.

    Args:
        count: of the classes, if they are named.
        values, void: as in :class:`cvattn.data.MasksFolderData`.

    Raises:
        ValueError: values that contradict each other or the classes.
    """
    for name, each in (("void", void), *(("values", value) for value in values or ())):
        if each is not None and not 0 <= each <= 255:
            raise ValueError(f"{name}: {each} is no value of a mask; those are 0 to 255")
    if values is None:
        return None
    if len(values) < 2 or len(set(values)) < len(values):
        raise ValueError(f"values={list(values)}: expected 2 or more, each once")
    if count is not None and count != len(values):
        raise ValueError(f"{count} classes and {len(values)} values: expected one value for each")
    if void in values:
        raise ValueError(f"void={void} is among values={list(values)}: a class cannot be void")
    if void is None and 255 not in values:
        void = 255
    return MaskCode(tuple(values), void)


def found_code(found: frozenset[int], count: int | None, void: int | None) -> MaskCode:
    """What values of training masks mean that nobody explained, where there is no doubt.

    Args:
        found: all values of the training masks.
        count: of the classes, if they are named.
        void: as it was given.

    Raises:
        DataError: there is doubt; the text shows what to say.
    """
    if found == {0, 255} and void is None and count in (None, 2):
        note = (
            "the masks hold 0 and 255 and nothing else: taken for two classes (if 255 is void: "
            "data.void=255)"
        )
        return MaskCode((0, 255), None, note)
    none = 255 if void is None else void
    classes = sorted(found - {none})
    if not classes:
        raise DataError("the masks of train/ are void throughout: no pixel has a class")
    wanted = list(range(classes[-1] + 1)) if count is None else list(range(count))
    if count is None and len(classes) == 1:
        raise DataError(
            f"the masks of train/ hold the value {classes[0]} alone (beside void, {none}): there "
            "is one class only, and nothing to learn"
        )
    if none in wanted:
        raise DataError(
            f"void={none} is one of the values 0 to {wanted[-1]} of the classes; say which values "
            "these have: data.values=[...]"
        )
    if (count is None and classes != wanted) or not set(classes) <= set(wanted):
        what = "0, 1, 2, ..." if count is None else f"0 to {count - 1} for {count} classes"
        named = "" if count is None else ", and as many data.classes"
        raise DataError(
            f"the masks of train/ hold the values {shown(sorted(found))}, which are not {what}. "
            f"Say which values are classes, and which is void: data.values={_list(classes)}{named} "
            f"(void is 255 unless data.void= says another), or data.values={_list(sorted(found))} "
            "if each is a class"
        )
    note = "" if count is not None else f"classes 0 to {wanted[-1]}, as found in the masks"
    if none in found:
        note += f"{'; ' if note else ''}{none} is void"
    return MaskCode(tuple(wanted), none, note)


def shown(values: Sequence[int]) -> str:
    """Some of the values, and how many more there are."""
    more = f" and {len(values) - _MOST_SHOWN} more" if len(values) > _MOST_SHOWN else ""
    return ", ".join(map(str, values[:_MOST_SHOWN])) + more


def _list(values: Sequence[int]) -> str:
    return f"[{','.join(map(str, values))}]" if len(values) <= _MOST_SHOWN else "[...]"

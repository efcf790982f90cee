"""Image files: which there are in a folder, and the pixels of each. The one place that opens them.

Training, prediction and lines read a file through :func:`read_picture`, so that it means the same
to each of them.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cvattn.system import printable

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
)
# What those are, whatever a file is named: Pillow would hand an EPS file to Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
# Made by systems beside people's files, and full of copies of their images; as are hidden folders.
_SYSTEM = frozenset(
    ("__macosx", "@eadir", "@recycle", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "thumbs.db")
)
_INVISIBLE = 16  # fewer levels of brightness than these cannot be told apart from the ground


class ImageError(ValueError):
    """A file that cannot be read as an image; the text says why, and does not name the file."""


class Listing(NamedTuple):
    """Image files below a folder, sorted; and what was passed over.

    Attributes:
        left: image files that are hidden or lie in folders that are, and linked folders.
    """

    paths: list[Path]
    left: list[Path]


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is hidden, or a system's own: never a person's data."""
    return name.startswith(".") or name.lower() in _SYSTEM


def image_files(folder: Path) -> Listing:
    """All image files below a folder, by their suffixes.

    Hidden files and folders (``.ipynb_checkpoints``, ``._x.png``), those of systems (``@eaDir``,
    ``__MACOSX``) and linked folders are passed over. ``folder`` itself may be any of these.

    Raises:
        OSError: a folder cannot be read.
    """
    found = Listing([], [])

    def fail(error: OSError) -> None:
        raise error

    for base, folders, files in os.walk(folder, onerror=fail):
        place = Path(base)
        found.left.extend(place / name for name in folders if (place / name).is_symlink())
        inside = any(is_hidden(part) for part in place.relative_to(folder).parts)
        for name in files:
            path = place / name
            if path.suffix.lower() in SUFFIXES and path.is_file():
                (found.left if inside or is_hidden(name) else found.paths).append(path)
    found.paths.sort()
    found.left.sort()
    return found


def left_out(paths: Sequence[Path]) -> str:
    """What of a folder is not read, in words; "" if nothing."""
    if not paths:
        return ""
    first = printable(str(paths[0]))
    such = first if len(paths) == 1 else f"{len(paths)}, such as {first}"
    return f"not read, because hidden, linked or of no class: {such}"


def read_picture(path: str | os.PathLike[str] | IO[bytes], channels: int) -> Image.Image:
    """The picture in a file as people see it: mode "RGB" for 3 channels, "L" for 1.

    ``path`` may also be a file that is open, or one in memory.

    Turned upright (EXIF). Of 16 bits the upper 8 are kept. What is transparent lies on white, as on
    a page; a picture of which white would leave nothing to be seen (a white logo) lies on black. Of
    an animation, the first frame. A file is what its content says, whatever its name.

    Raises:
        ImageError: missing, damaged, not of :data:`FORMATS`, too large to be an honest image, or
            with pixels of no fixed range (floating point, 32 bits).
    """
    try:
        with Image.open(path, formats=FORMATS) as file:
            picture = _eight_bits(ImageOps.exif_transpose(file), str(file.format))
            return _opaque(picture).convert("RGB" if channels == 3 else "L")
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except IsADirectoryError:
        raise ImageError("a folder without image files") from None
    except UnidentifiedImageError:
        raise ImageError(
            f"not an image, or damaged at its beginning; read are {', '.join(FORMATS)}"
        ) from None
    except Exception as error:  # of damaged files decoders raise nearly anything
        raise ImageError(str(error) or type(error).__name__) from error


def pixels_of(picture: Image.Image) -> np.ndarray:
    """uint8 (C, H, W), in memory of its own, which torch may write to."""
    pixels = np.array(picture)
    return pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]


def cut(picture: Image.Image, image_size: tuple[int, int]) -> np.ndarray:
    """Scaled to cover (H, W) (bicubic, with anti-aliasing) and cut in the middle; uint8 (C, H, W).

    Raises:
        ImageError: a picture that is too unlike (H, W) to be scaled.
    """
    height, width = image_size
    try:
        return pixels_of(ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC))
    except (ValueError, ZeroDivisionError, MemoryError) as error:
        raise ImageError(
            f"{picture.width} x {picture.height} pixels cannot be scaled to {width} x {height}: "
            f"{error}"
        ) from error


def _eight_bits(picture: Image.Image, file_format: str) -> Image.Image:
    """Grey of 16 bits as "L", or as "LA" where one of its values is transparent."""
    if picture.mode == "F":
        raise ImageError("floating-point pixels have no fixed range; save it with 8 or 16 bits")
    deep = picture.mode.startswith("I;16")
    # Pillow has 16 bits of these in a mode of 32; in a TIFF that mode means 32.
    if picture.mode == "I" and file_format not in ("PNG", "PPM"):
        raise ImageError("32-bit pixels have no fixed range; save it with 8 or 16 bits")
    if not deep and picture.mode != "I":
        return picture
    values = np.asarray(picture).astype(np.int64)
    grey = Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8))
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _opaque(picture: Image.Image) -> Image.Image:
    """On white; the colour under transparent pixels is arbitrary, and often black."""
    if not picture.has_transparency_data:
        return picture
    picture = picture.convert("RGBA")
    if picture.getchannel("A").getextrema()[0] == 255:
        return picture.convert("RGB")
    white = _laid_on("white", picture)
    if _levels(white) >= _INVISIBLE:
        return white
    black = _laid_on("black", picture)
    return black if _levels(black) >= _INVISIBLE else white


def _laid_on(ground: str, picture: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", picture.size, ground), picture).convert("RGB")


def _levels(picture: Image.Image) -> int:
    """The widest range of values of a channel."""
    return max(high - low for low, high in picture.getextrema())  # type: ignore[misc]

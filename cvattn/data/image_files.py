"""Image files: which there are in a folder, and the pixels of each. The one place that opens them.

Training, prediction and lines read a file through :func:`read_picture`, so that it means the same
to each of them.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cvattn.data.as_seen import ImageError as ImageError
from cvattn.data.as_seen import as_seen
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
ORIENTATION = 0x0112  # EXIF's
# What the last bytes hold of a file that is whole, if nothing was appended to it.
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}
_TAIL = 4096


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
    with _image_errors(), Image.open(path, formats=FORMATS) as file:
        return as_seen(file, channels)


class Box(NamedTuple):
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


def read_part(
    path: str | os.PathLike[str] | IO[bytes],
    channels: int,
    choose: Callable[[int, int], Box],
    least: tuple[int, int],
) -> np.ndarray:
    """A part of the picture, as :func:`read_picture` gives the whole: uint8 (h, w, C).

    A large JPEG is decoded at a half, a quarter or an eighth of its size, as far as what is left of
    the part stays at least as large as ``least``.

    Args:
        choose: is told the picture's height and width; says which part.
        least: (H, W).

    Raises:
        ImageError: as in :func:`read_picture`.
    """
    with _image_errors(), Image.open(path, formats=FORMATS) as file:
        turned = file.getexif().get(ORIENTATION, 1) >= 5
        width, height = file.size[::-1] if turned else file.size
        box = choose(height, width)
        # Of the whole picture, so that the part keeps enough.
        needed = (
            math.ceil(width * least[1] / box.width),
            math.ceil(height * least[0] / box.height),
        )
        file.draft(None, needed[::-1] if turned else needed)
        pixels = np.asarray(as_seen(file, channels))
    down, right = pixels.shape[0] / height, pixels.shape[1] / width  # 1, or less after a draft
    top, left = round(box.top * down), round(box.left * right)
    bottom, end = round((box.top + box.height) * down), round((box.left + box.width) * right)
    # A copy: what Pillow hands out cannot be written to, and torch insists that it could.
    return np.array(pixels[top:bottom, left:end]).reshape(bottom - top, end - left, channels)


def size_of(path: str | os.PathLike[str] | IO[bytes]) -> tuple[int, int]:
    """(height, width) of the upright picture, by the header alone; errors as in read_picture."""
    with _image_errors(), Image.open(path, formats=FORMATS) as file:
        turned = file.getexif().get(ORIENTATION, 1) >= 5
        return file.size if turned else file.size[::-1]


def check_quickly(path: str | os.PathLike[str] | IO[bytes]) -> None:
    """Raise ImageError for a file that is no image or ends too early, mostly without decoding it.

    The header is read, and looked for is what ends a JPEG or a PNG; where that is missing, and in
    files of other kinds, everything is decoded. Damage in the middle of a JPEG or a PNG is not
    seen.
    """
    with _image_errors(), Image.open(path, formats=FORMATS) as file:
        end = _ENDS.get(str(file.format))
        if end is not None and file.fp is not None:
            place = file.fp.tell()
            file.fp.seek(0, os.SEEK_END)
            file.fp.seek(-min(_TAIL, file.fp.tell()), os.SEEK_END)
            if end in file.fp.read():
                return
            file.fp.seek(place)
        as_seen(file, 3)


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


@contextmanager
def _image_errors() -> Iterator[None]:
    """Whatever goes wrong in opening and decoding is an ImageError that says why."""
    try:
        yield
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

"""Image files of any kind, as a network takes them."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from cvattn.cli.common import CommandError, Trained, shown

T = TypeVar("T")

# As cvattn.data takes them from class folders; a test holds the two together. Importing that room
# would load Lightning to look at one photograph.
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
)


class ImageError(Exception):
    """A file that cannot be read as an image; the text says why."""


def find_images(paths: Iterable[str]) -> list[Path]:
    """The files, and of each folder every image file below it, sorted; a folder without is kept."""
    found: list[Path] = []
    for path in map(Path, paths):
        inside = [path] if not path.is_dir() else _inside(path)
        found += inside or [path]
    return found


def readable(paths: Iterable[Path], read: Callable[[Path], T]) -> Iterator[tuple[Path, T]]:
    """Each file that ``read`` can read, and what it gives; of the others, a line says why not."""
    for path in paths:
        try:
            yield path, read(path)
        except ImageError as error:
            print(f"error: {shown(path)}: {error}", file=sys.stderr)


def _inside(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def read_image(
    path: str | os.PathLike[str], channels: int, image_size: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """Pixels, uint8 (channels, H, W), and the size (H, W) that the upright image had.

    The whole image: turned upright (EXIF), laid on white where it is transparent, converted to
    colour or grey, resized with anti-aliasing (bilinear), squeezed if its shape is another. Of an
    animation, the first frame; 16-bit grey keeps its upper 8 bits.

    Raises:
        ImageError: missing, damaged, or of a kind that has no fixed range.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if os.path.isdir(path):
        raise ImageError("a folder without image files")
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            image = _on_white(_eight_bits(image)).convert("RGB" if channels == 3 else "L")
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except UnidentifiedImageError:
        raise ImageError("not an image, or damaged at its beginning") from None
    except ImageError:
        raise
    except Exception as error:  # decoders raise all sorts of things on damaged files
        raise ImageError(str(error) or type(error).__name__) from error
    size = (image.height, image.width)
    height, width = image_size
    if size != image_size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.array(image)
    return pixels.transpose(2, 0, 1) if channels == 3 else pixels[None], size


def image_reader(trained: Trained) -> Callable[[Path], tuple[np.ndarray, str]]:
    """Reads a file as in training: pixels, uint8 (C, H, W), and if it was squeezed, its size.

    Raises:
        CommandError: the network takes channels that no image file has.
    """
    if trained.channels not in (1, 3):
        raise CommandError(
            f"the network takes {trained.channels} channels; image files have 1 or 3"
        )
    height, width = trained.image_size
    data = trained.config.get("data")
    if isinstance(data, dict) and data.get("_target_") == "cvattn.data.FolderData":
        # These networks saw images cut to shape, never squeezed: they get the same here.
        from cvattn.data.folder_files import decode

        def read_cut(path: Path) -> tuple[np.ndarray, str]:
            if not path.is_file():
                read_image(path, trained.channels, trained.image_size)  # says what is wrong
            pixels = decode(path, trained.image_size, trained.channels)
            if isinstance(pixels, str):
                raise ImageError(pixels)
            return pixels, ""

        return read_cut

    def read_whole(path: Path) -> tuple[np.ndarray, str]:
        pixels, (h, w) = read_image(path, trained.channels, trained.image_size)
        return pixels, f"{w} x {h}" if h * width != w * height else ""

    return read_whole


def _eight_bits(image):
    from PIL import Image

    if image.mode == "F":
        raise ImageError("floating-point pixels have no fixed range; save it with 8 or 16 bits")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    pixels = np.asarray(image)
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise ImageError("32-bit pixels have no fixed range; save it with 8 or 16 bits")
    return Image.fromarray((pixels.astype(np.uint16) >> 8).astype(np.uint8))


def _on_white(image):
    """What a person sees: the colour under transparent pixels is arbitrary, and often black."""
    from PIL import Image

    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)

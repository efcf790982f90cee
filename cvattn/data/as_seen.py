"""A picture as people see it: upright, of 8 bits a channel, on white where it is transparent."""

import numpy as np
from PIL import Image, ImageOps

_INVISIBLE = 16  # fewer levels of brightness than these cannot be told apart from the ground


class ImageError(ValueError):
    """A file that cannot be read as an image; the text says why, and does not name the file."""


def as_seen(file: Image.Image, channels: int) -> Image.Image:
    """What :func:`cvattn.data.image_files.read_picture` says, of a file that is open."""
    picture = _eight_bits(ImageOps.exif_transpose(file), str(file.format))
    return _opaque(picture).convert("RGB" if channels == 3 else "L")


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

"""Image files in class folders: which there are, and their pixels."""

import difflib
from pathlib import Path

import numpy as np

from cvattn.data.checks import DataError

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
)


def classes_of(root: Path, part: str) -> dict[str, Path]:
    """Class name -> folder, sorted by name, of ``root/part``.

    Raises:
        DataError: no such folder, fewer than two classes, or a class without image files.
    """
    folder = root / part
    if not folder.is_dir():
        if not root.is_dir():
            raise DataError(
                f"data.root={root} is not a folder; expected one with train/ and test/ in it"
            )
        there = sorted(path.name for path in root.iterdir() if path.is_dir())
        near = difflib.get_close_matches(part, [name.lower() for name in there], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(
            f"{folder} is missing; expected train/ and test/ in {root}, with a folder of images "
            f"for each class; there are: {', '.join(there[:10]) or 'no folders'}{hint}"
        )
    classes = {
        path.name: path
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".")
    }
    if len(classes) < 2:
        what = f"only the class {next(iter(classes))!r}" if classes else "no class folders"
        raise DataError(f"{folder} has {what}; expected a folder of images for each of 2 or more")
    empty = [name for name, path in classes.items() if not image_paths(path)]
    if empty:
        raise DataError(
            f"{folder} has no image files for {', '.join(empty)}; expected names that end in "
            f"{' '.join(sorted(SUFFIXES))}"
        )
    return classes


def image_paths(folder: Path) -> list[Path]:
    """All image files below a class folder, sorted; hidden ones are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def decode(path: Path, image_size: tuple[int, int], channels: int) -> np.ndarray | str:
    """Pixels, uint8 (channels, H, W), or what is wrong with the file, in words.

    Turned upright, scaled to cover (H, W) (bicubic, with anti-aliasing), cut in the middle.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    height, width = image_size
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            elif image.mode in ("I", "F"):
                return f"pixels of mode {image.mode} have no fixed range; save it with 8 or 16 bits"
            image = image.convert("RGB" if channels == 3 else "L")
            image = ImageOps.fit(image, (width, height), method=Image.Resampling.BICUBIC)
    except UnidentifiedImageError:
        return "not an image, or damaged at its beginning"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return str(error) or type(error).__name__
    pixels = np.array(image)  # a copy, because torch wants memory that can be written to
    return pixels.transpose(2, 0, 1) if channels == 3 else pixels[None]

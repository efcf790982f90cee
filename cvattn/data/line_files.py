"""Pictures of lines and what is written in them: files of a user's folder."""

import unicodedata
from pathlib import Path

import numpy as np

from cvattn.data.checks import DataError

TRANSCRIPTS = "transcripts.txt"


def read_transcripts(folder: Path) -> list[tuple[Path, str]]:
    """The line images of a folder with what they say, sorted by name.

    ``transcripts.txt`` has a line for each image: its name, a tab, and the text. Text is brought to
    Unicode's composed form (NFC), so that é is one character however it was typed.

    Raises:
        DataError: no folder, no file of transcripts, none in it; a line without a tab or text, an
            image named twice or missing. The text names file and line.
    """
    path = folder / TRANSCRIPTS
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) if folder.is_dir() else ""
        raise DataError(
            f"{path} is missing: a text file with a line for each image, its name, a tab and what "
            f"it says; in {folder} there are: {there or 'no files'}"
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, tab, text = line.partition("\t")
        text = unicodedata.normalize("NFC", text)
        where = f"{path}, line {number}"
        if not tab:
            raise DataError(f"{where} has no tab: {line[:60]!r}; expected NAME, a tab, TEXT")
        if not text.strip():
            raise DataError(
                f"{where}: {name} has an empty transcript; leave out lines without text"
            )
        if name in found:
            raise DataError(f"{where}: {name} has a transcript already")
        if not (folder / name).is_file():
            raise DataError(f"{where}: there is no image {folder / name}")
        found[name] = text
    if not found:
        raise DataError(f"{path} has no transcripts")
    return [(folder / name, found[name]) for name in sorted(found)]


def decode_line(path: Path, height: int) -> np.ndarray | str:
    """Grey pixels, uint8 (height, W), or what is wrong with the file, in words.

    Turned upright; transparency becomes white. Lower lines are filled up above and below with
    their outermost rows; higher ones are an error: to make them smaller is the user's to decide.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode == "F" or image.mode == "I":
                return f"pixels of mode {image.mode} have no fixed range; save it with 8 or 16 bits"
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            pixels = np.array(image.convert("L"))
    except FileNotFoundError:
        return "no such file"
    except UnidentifiedImageError:
        return "not an image, or damaged at its beginning"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return str(error) or type(error).__name__
    missing = height - pixels.shape[0]
    if missing < 0:
        return (
            f"the line is {pixels.shape[0]} pixels high, lines may be at most {height}; scale the "
            "image down, or train with a larger height"
        )
    return np.pad(pixels, ((missing // 2, missing - missing // 2), (0, 0)), mode="edge")

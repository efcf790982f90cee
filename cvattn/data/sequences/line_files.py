"""Pictures of lines and what is written in them: files of a user's folder."""

import unicodedata
from pathlib import Path, PurePath

import numpy as np

from cvattn.data.checks import DataError
from cvattn.data.image_files import ImageError, pixels_of, read_picture

TRANSCRIPTS = "transcripts.txt"


def read_transcripts(folder: Path) -> list[tuple[Path, str]]:
    """The line images of a folder with what they say, sorted by name.

    ``transcripts.txt`` has a line for each image: its name, a tab, and the text. Text is brought to
    Unicode's composed form (NFC), so that é is one character however it was typed.

    Raises:
        DataError: no folder, no file of transcripts, none in it; a line without a tab or text, an
            image named twice, missing or outside of the folder. The text names file and line.
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
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise DataError(f"{where}: {name} is not in {folder}; images lie in it or below")
        if name in found:
            raise DataError(f"{where}: {name} has a transcript already")
        if not (folder / name).is_file():
            raise DataError(f"{where}: there is no image {folder / name}")
        found[name] = text
    if not found:
        raise DataError(f"{path} has no transcripts")
    return [(folder / name, found[name]) for name in sorted(found)]


def read_line(path: Path, height: int) -> np.ndarray:
    """Grey pixels, uint8 (height, W), of a file as :func:`read_picture` reads it.

    Lower lines are filled up above and below with their outermost rows.

    Raises:
        ImageError: the file cannot be read, or its line is higher: to make it smaller is the user's
            to decide.
    """
    pixels = pixels_of(read_picture(path, 1))[0]
    missing = height - pixels.shape[0]
    if missing < 0:
        raise ImageError(
            f"the line is {pixels.shape[0]} pixels high, lines may be at most {height}; scale the "
            "image down, or train with a larger height"
        )
    return np.pad(pixels, ((missing // 2, missing - missing // 2), (0, 0)), mode="edge")

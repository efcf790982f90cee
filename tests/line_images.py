"""A folder of line images with transcripts, as a user would have it."""

from pathlib import Path

import numpy as np
from PIL import Image

# Letters as patterns of four columns: simple enough to be told apart, unlike enough to be mixed up.
LETTERS = {"a": (255, 0, 255, 0), "é": (0, 255, 255, 0), "界": (255, 255, 0, 0), " ": (0, 0, 0, 0)}


def draw(text: str, height: int = 13) -> np.ndarray:
    """uint8 (height, 4 x characters): the rows are equal but for the first."""
    pixels = np.tile(np.array([v for c in text for v in LETTERS[c]], dtype=np.uint8), (height, 1))
    pixels[0] = 7
    return pixels


def write_part(folder: Path, texts: dict[str, str], height: int = 13) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        Image.fromarray(draw(text, height)).save(folder / name)
    rows = [f"{name}\t{text}\n" for name, text in texts.items()]
    (folder / "transcripts.txt").write_text("".join(rows), encoding="utf-8")


def write_lines(root: Path) -> Path:
    """23 training lines of 1 to 6 characters, and 5 test lines."""
    letters = "aé界"
    texts = ["".join(letters[(i * j + i) % 3] for j in range(1 + i % 6)) for i in range(23)]
    write_part(root / "train", {f"{i:02}.png": text for i, text in enumerate(texts)})
    write_part(root / "test", {f"t{i}.png": texts[3 * i][::-1] for i in range(5)})
    return root

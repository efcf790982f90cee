"""A folder of images with several labels, for tests."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

# Bars of a colour; an image has any of them, or none.
COLOURS = {"red": (200, 40, 30), "green": (30, 190, 60), "blue": (30, 60, 210)}
COUNTS = {"train": 61, "val": 17, "test": 23}


def draw_labels(root: Path, form: str = "columns") -> Path:
    """Images 12 x 20 in ``root/pictures``, and tables: "columns", "names" or "one table"."""
    generator = np.random.default_rng(5)
    (root / "pictures").mkdir(parents=True)
    rows: dict[str, list[tuple[str, list[int]]]] = {}
    for part, count in COUNTS.items():
        rows[part] = []
        for i in range(count):
            has = [int(generator.random() < share) for share in (0.5, 0.35, 0.2)]
            pixels = generator.integers(90, 130, (12, 20, 3)).astype(np.uint8)
            for place, colour in enumerate(COLOURS.values()):
                if has[place]:
                    pixels[4 * place : 4 * place + 4] = colour
            name = f"pictures/{part} {i}.png"
            Image.fromarray(pixels).save(root / name)
            rows[part].append((name, has))
    if form == "one table":
        every = [(name, part, *has) for part, some in rows.items() for name, has in some]
        write(root / "labels.csv", ["file", "split", *COLOURS], every)
        return root
    for part, some in rows.items():
        if form == "columns":
            write(root / f"{part}.csv", ["file", *COLOURS], [(name, *has) for name, has in some])
        else:
            there = [[c for c, yes in zip(COLOURS, has, strict=True) if yes] for _, has in some]
            cells = [(name, ";".join(c)) for (name, _), c in zip(some, there, strict=True)]
            write(root / f"{part}.csv", ["file", "labels"], cells)
    return root


def write(path: Path, header, rows) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows(rows)

"""What the pages suppose that the reader has: images, masks, labels, shards, choices of his own."""

import importlib.util
import io
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from fenced import ROOT
from PIL import Image
from small import STANDING_IN, small_runs

CLOTHES = [
    "Top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Boot",
]


def lay_out(folder: Path) -> None:
    """What the pages name by paths that are relative."""
    _class_folders(folder / "my_images", ["cat", "dog"], (40, 50))
    _class_folders(folder / "photos", ["cat", "dog"], (40, 50))
    _tables(folder / "photos")
    for part, count in (("train", 20), ("test", 9)):
        for number in range(count):
            mask = np.zeros((52, 66), np.uint8)
            mask[number : number + 20, 10:40] = 255
            place = folder / "my_scans" / part
            _picture(place / "images" / f"{number}.jpg", number, (52, 66))
            _save(place / "masks" / f"{number}.png", mask)
    _picture(folder / "cat.png", 1, (90, 70))
    _picture(folder / "photo.jpg", 2, (80, 100))
    _picture(folder / "boot.png", 3, (28, 28), channels=1)
    own = folder / "my_conf" / "experiment" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\ndefaults:\n  - override /data: digits\nseed: 3\n")
    if importlib.util.find_spec("datasets"):
        _hub_dataset(folder / "my_dataset")


def lay_out_cache(folder: Path) -> None:
    """A file that was kept of decoded images, by the name that a page has."""
    folder.mkdir(exist_ok=True)
    (folder / "folder-train-0123456789abcdef.images").write_bytes(bytes(1000))


def lay_out_data(folder: Path) -> None:
    """What ``small.py`` puts in the place of data that is not here."""
    for name in STANDING_IN:
        grey = "data.channels=1" in STANDING_IN[name]
        size, channels = ((28, 28), 1) if grey else ((32, 32), 3)
        _class_folders(folder / name, CLOTHES, size, channels)
    for number in range(13):
        _shard(folder / "shards" / f"train-{number:06}.tar", range(5 * number, 5 * number + 5))
    _shard(folder / "shards" / "test-0.tar", range(100, 109))


def lay_out_benchmarks(folder: Path, runs: Path) -> None:
    """The scripts of the checkout, and its lists of runs made small."""
    for file in (ROOT / "benchmarks").glob("*.py"):
        shutil.copy(file, folder)
    for file in (ROOT / "benchmarks").glob("*.yaml"):
        (folder / file.name).write_text(
            yaml.safe_dump(small_runs(yaml.safe_load(file.read_text()), runs), sort_keys=False)
        )


def _class_folders(
    root: Path, classes: Sequence[str], size: tuple[int, int], channels: int = 3
) -> None:
    for part, count in (("train", 9), ("test", 3)):
        for label, name in enumerate(classes):
            for number in range(count):
                seed = 1000 * label + number + (500 if part == "test" else 0)
                _picture(root / part / name / f"{part}_{seed}.png", seed, size, channels)


def _tables(root: Path) -> None:
    """Several labels for each image of the folder."""
    for part in ("train", "test"):
        files = sorted((root / part).rglob("*.png"))
        rows = [f"{file.relative_to(root)},{i % 2},{i // 2 % 2}" for i, file in enumerate(files)]
        (root / f"{part}.csv").write_text("\n".join(["file,cat,outdoors", *rows]) + "\n")


def _shard(path: Path, numbers: Sequence[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            picture = io.BytesIO()
            Image.fromarray(_pixels(number, (40, 50))).save(picture, "JPEG")
            for suffix, data in ((".jpg", picture.getvalue()), (".cls", b"%d" % (number % 3))):
                member = tarfile.TarInfo(f"{number:06}{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def _hub_dataset(folder: Path) -> None:
    import datasets

    kinds = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    parts = {
        part: datasets.Dataset.from_dict(
            {
                "image": [Image.fromarray(_pixels(seed, (40, 50))) for seed in range(count)],
                "label": [seed % 2 for seed in range(count)],
            },
            features=kinds,
        )
        for part, count in (("train", 24), ("test", 9))
    }
    datasets.DatasetDict(parts).save_to_disk(str(folder))


def _pixels(seed: int, size: tuple[int, int], channels: int = 3) -> np.ndarray:
    """A bright square on noise, elsewhere for each seed."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 120, (*size, channels), dtype=np.uint8)
    top, left = generator.integers(0, 14, 2)
    pixels[top : top + 13, left : left + 11] += 100
    return pixels if channels == 3 else pixels[..., 0]


def _picture(path: Path, seed: int, size: tuple[int, int], channels: int = 3) -> None:
    _save(path, _pixels(seed, size, channels))


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)

"""Photographs that a benchmark reads: drawn, in folders and in shards."""

import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

SIZE, CLASSES = 224, 10
PER_SHARD, LEAST_SHARDS = 1000, 8  # two processes with two workers take two each


def draw_photograph(number: int) -> Image.Image:
    """Colours that vary at every scale, as those of photographs do, with an edge across."""
    generator = np.random.default_rng(number)
    pixels = np.zeros((SIZE, SIZE, 3), np.float32)
    for cells in (3, 7, 14, 28, 56, 112, 224):
        noise = generator.standard_normal((cells, cells, 3)).astype(np.float32)
        noise += 2 * noise.mean(2, keepdims=True)  # brightness varies more than hue
        for channel in range(3):
            layer = Image.fromarray(noise[..., channel]).resize((SIZE, SIZE), Image.BICUBIC)
            pixels[..., channel] += np.asarray(layer) * (60 / cells**0.5)
    slope, where = generator.standard_normal(2)
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    pixels += 60 * np.sign(y - slope * x - where / 2)[..., None]
    return Image.fromarray((pixels + 120).clip(0, 255).astype(np.uint8))


def draw_folder(root: Path, count: int) -> None:
    """``count`` photographs to train on; one of each class to validate and to test."""
    parts = {"train": count, "val": CLASSES, "test": CLASSES}
    for part in parts:
        for each in range(CLASSES):
            (root / part / f"class{each}").mkdir(parents=True)

    def draw(job: tuple[str, int]) -> None:
        part, number = job
        path = root / part / f"class{number % CLASSES}" / f"{number:06}.jpg"
        draw_photograph(number).save(path, quality=90)

    jobs = [(part, number) for part, many in parts.items() for number in range(many)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(draw, jobs, chunksize=16))


def write_shards(root: Path) -> None:
    """The same files in ``root/shards``, 1,000 of a part in each at most, the classes in turn."""
    for part in ("train", "val", "test"):
        paths = sorted((root / part).rglob("*.jpg"), key=lambda path: path.name)
        each = min(PER_SHARD, -(-len(paths) // LEAST_SHARDS))
        for at in range(0, len(paths), each):
            shard = root / "shards" / f"{part}-{at // each:06}.tar"
            shard.parent.mkdir(exist_ok=True)
            with tarfile.open(shard, "w") as archive:
                for path in paths[at : at + each]:
                    archive.add(path, path.name)
                    label = path.parent.name.removeprefix("class").encode()
                    member = tarfile.TarInfo(f"{path.stem}.cls")
                    member.size = len(label)
                    archive.addfile(member, io.BytesIO(label))

"""Small shards, written with tarfile, as good or as bad as a test wants."""

import io
import tarfile

import numpy as np
from PIL import Image


def encoded(seed, size=(20, 30), kind="JPEG") -> bytes:
    """A picture of its own for each seed, (H, W)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def write_tar(path, files, **options):
    """A tar file of (name, bytes) pairs; a name that ends in / is a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
            archive.addfile(member, io.BytesIO(data))
    return path


def samples(start, stop, classes=3, image="jpg", label="cls"):
    """Files of samples number ``start`` to ``stop``; sizes and classes differ."""
    files = []
    for i in range(start, stop):
        size = (11 + i % 5, 13 + i % 7)
        files.append((f"{i:06}.{image}", encoded(i, size)))
        files.append((f"{i:06}.{label}", str(i % classes).encode()))
    return files


def write_shards(folder, counts=(7, 5, 11), prefix="train", start=0):
    """Shards of that many samples each; the paths."""
    paths = []
    for at, count in enumerate(counts):
        path = folder / f"{prefix}-{at:06}.tar"
        paths.append(write_tar(path, samples(start, start + count)))
        start += count
    return paths

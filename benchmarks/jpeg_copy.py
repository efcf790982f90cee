"""An equivalent of the "JPEG copy" that our CIFAR-10 figures are measured on, from official pixels.

    python benchmarks/jpeg_copy.py data data_jpeg
    CVATTN_DATA=data_jpeg python train.py model=sagan data=cifar10

Every image is encoded as JPEG (quality 75, colours at half the resolution, as Pillow does unless
told otherwise), in the official order, into the two parquet files of the Hugging Face layout.
"""

import argparse
import io
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from torch import Tensor

from cvattn.data import CIFAR10Data, DataError
from cvattn.data.images.cifar_facts import PARQUETS
from cvattn.data.images.cifar_files import find, has_official_pixels, read

QUALITY = 75


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder with the official CIFAR-10")
    parser.add_argument("target", type=Path, help="folder for the copy; made if it is not there")
    args = parser.parse_args()
    try:
        CIFAR10Data(root=args.source).prepare_data()
    except DataError as error:
        parser.error(str(error))
    found = find(CIFAR10Data.cifar, args.source.absolute())
    assert found is not None  # prepare_data() saw to it
    sets = read(found)
    if not has_official_pixels(found, sets["test"].images):
        parser.error(f"{args.source} does not hold the official pixels; a copy of a copy is worse")
    args.target.mkdir(parents=True, exist_ok=True)
    for split, name in PARQUETS.items():
        write(sets[split].images, sets[split].labels, args.target / name)
        print(f"{args.target / name}: {len(sets[split].images):,} images")
    return 0


def write(images: Tensor, labels: Tensor, path: Path) -> None:
    """One parquet file: ``img`` (bytes and a name) and ``label``; all or nothing."""
    rows = [
        {"bytes": encode(image), "path": f"{number:05}.jpg"} for number, image in enumerate(images)
    ]
    table = pa.table({"img": rows, "label": pa.array(labels.tolist(), pa.int64())})
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial)
    os.replace(partial, path)


def encode(image: Tensor) -> bytes:
    """uint8 (3, H, W) -> a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(image.movedim(0, -1).numpy()).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


if __name__ == "__main__":
    raise SystemExit(main())

"""What more GPUs and machines would need: measured costs of networks, decoding and augmentation.

    python benchmarks/scale.py                 two minutes, on one thread
    python benchmarks/scale.py --seconds 0.05   does everything work?

Measured: parameters (what the gradients of a step weigh between processes) and multiply-accumulates
per image of networks; images per second of its own time that one thread decodes from JPEG files
(224x224, quality 90, smooth noise) and makes smaller, and augments from memory (``CropFlip``,
normalised, batches of 64). Rows go to results/scale_<machine>.csv. What a GPU would do with that is
no measurement: ``docs/scale_table.py`` computes it from stated assumptions.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra.utils
import machine
import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from rows import write_rows
from torch import Tensor, nn

from cvattn.cost import count_macs, count_parameters
from cvattn.data.image_files import cut, read_picture
from cvattn.data.images.augment import CropFlip
from cvattn.data.loader import BatchLoader

SEED = 20265
SIDES = (32, 112, 224)
FILE_SIDE, FILES, BATCH, ROUNDS = 224, 64, 64, 5
LARGE = 100  # from this side on the stem of a timm network is its own
# Ours are for small images; what people train on large ones comes from timm.
NETWORKS = {
    "sagan": (32, 112, 224),
    "vit": (32,),
    "unet": (32,),
    "resnet18": SIDES,
    "efficientnet_lite0": SIDES,
}
COLUMNS = (
    *("kind", "name", "side", "parameters", "macs", "images_per_second", "low", "high", "rounds"),
    *("torch", "commit", "cpu", "threads", "bf16_instructions", "date"),
)


def main() -> None:
    args = _arguments()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    facts = {**machine.facts(), "threads": "1"}
    name = f"scale_{machine.slug(facts['cpu'])}.csv"
    output = args.output or machine.ROOT / "results" / name
    rows = []
    for row in (*network_rows(), *loader_rows(args.seconds)):
        rows.append({**row, **facts})
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    write_rows(output, COLUMNS, rows)


def network_rows() -> Iterator[dict]:
    for name, sides in NETWORKS.items():
        for side in sides:
            network, inputs = build(name, side)
            yield {
                "kind": "network",
                "name": name,
                "side": side,
                "parameters": count_parameters(network),
                "macs": count_macs(network, *inputs),
            }


def build(name: str, side: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network as ``conf/model`` has it for 10 classes and colour images, and what it takes."""
    ours = (machine.ROOT / "conf" / "model" / f"{name}.yaml").exists()
    node = OmegaConf.load(machine.ROOT / "conf" / "model" / f"{name if ours else 'timm'}.yaml")
    node.pop("defaults", None)
    if not ours:
        node.update({"name": name, "attention": None, "small_images": side < LARGE})
    known = {
        "num_classes": 10,
        "classes": 10,
        "in_channels": 3,
        "out_channels": 3,
        "timed": True,
        "image_size": [side, side],
    }
    node.update({key: known[key] for key in node if OmegaConf.is_missing(node, key)})
    images = torch.zeros(1, 3, side, side)
    times_and_labels = (torch.ones(1), torch.full((1,), 10))
    inputs = (images, *times_and_labels) if name == "unet" else (images,)
    return hydra.utils.instantiate(node, _convert_="all"), inputs


def loader_rows(seconds: float) -> Iterator[dict]:
    files = draw_files()
    for side in SIDES:
        yield {
            "kind": "decode",
            "name": f"JPEG of {FILE_SIDE}x{FILE_SIDE}",
            "side": side,
            **speed(lambda side=side: decode(files, side), FILES, seconds),
        }
    for side in SIDES:
        loader = BatchLoader(
            torch.randint(256, (4 * BATCH, 3, side, side), dtype=torch.uint8),
            torch.zeros(4 * BATCH, dtype=torch.int64),
            batch_size=BATCH,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            train=True,
            augment=CropFlip(crop_pad=4, fill=(127, 127, 127)),
            seed=SEED,
        )
        yield {
            "kind": "augment",
            "name": "CropFlip from memory",
            "side": side,
            **speed(lambda loader=loader: list(loader), 4 * BATCH, seconds),
        }


def draw_files() -> list[bytes]:
    """Smooth noise, of about as many bytes as photographs have."""
    generator = np.random.default_rng(SEED)
    files = []
    for _ in range(FILES):
        coarse = Image.fromarray(generator.integers(0, 256, (28, 28, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((FILE_SIDE, FILE_SIDE), Image.Resampling.BICUBIC))
        grain = generator.normal(0, 6, smooth.shape)
        pixels = (smooth + grain).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def decode(files: list[bytes], side: int) -> None:
    for content in files:
        cut(read_picture(io.BytesIO(content), 3), (side, side))


def speed(run: Callable[[], object], images: int, seconds: float) -> dict:
    """Images a second of a core's time: the median of some rounds, the slowest and the fastest."""
    run()
    found = []
    for _ in range(ROUNDS):
        begin, done = time.process_time(), 0
        while done == 0 or time.process_time() - begin < seconds:
            run()
            done += images
        found.append(done / (time.process_time() - begin))
    return {
        "images_per_second": f"{statistics.median(found):.0f}",
        "low": f"{min(found):.0f}",
        "high": f"{max(found):.0f}",
        "rounds": ROUNDS,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a round")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()

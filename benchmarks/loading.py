"""Training batches of photographs: ours beside torchvision's, timm's and webdataset's loaders.

    python benchmarks/loading.py                    rows in results/loading_<machine>.csv
    python benchmarks/loading.py --count 2000       does everything work?

40,000 JPEGs of 224 x 224 are drawn (smooth at every scale, quality 90), in 10 folders. Each loader
shows two epochs of them in batches of 128: a random resized crop of 8 to 100 % of the area to
224 x 224, half of them mirrored, normalised, float32; no other work, so what is measured is what a
loader can give at most. All use two workers: threads in ours, processes in the others.
``data.hold=mapped`` decodes into a cache of its own, anew in each round. The same files, in shards
of 1,000, are read by ``data=webdataset`` (from any place at any time) and by webdataset's own
loader (from the front, through a buffer of 1,000); ours first finds out where each file is.

Each figure is of a process of its own that has imported everything; rounds take the loaders in
turn. Memory is what the kernel says of a process and its workers together, looked at every 0.2 s:
PSS shares what is shared, USS leaves it out. "Above imports" is what came after them.
"""

import argparse
import importlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

import machine
import numpy as np
import torch
from paired import paired_ratio
from PIL import Image
from rich.console import Console
from rows import write_rows

SIZE, BATCH, WORKERS, CLASSES = 224, 128, 2, 10
SHARE = (0.08, 1.0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OURS = ("ours, mapped", "ours, stream")
RIVALS = ("torchvision ImageFolder", "timm create_loader")
SHARDS = ("ours, shards, stream", "webdataset WebLoader")
PER_SHARD, LEAST_SHARDS = 1000, 8  # two processes with two workers take two each
COLUMNS = (
    *("loader", "figure", "median", "low", "high", "target", "met", "rounds", "images"),
    *("torch", "commit", "cpu", "bf16_instructions", "date"),
)
LARGEST_GIB = 2.0  # of a process, above its imports


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


def our_batches(loader: str, root: Path, rank: int, ranks: int) -> Iterator[Iterable]:
    """The batches of each epoch."""
    from cvattn.data import BatchLoader, FolderData, WebDatasetData
    from cvattn.data.images.augment import CropFlip

    if loader == SHARDS[0]:
        parts = {part: f"{root}/shards/{part}-*.tar" for part in ("train", "val", "test")}
        make = partial(WebDatasetData, **parts)
    else:
        make = partial(FolderData, root=root)
    hold = loader.split()[-1]
    data = make(
        image_size=SIZE,
        hold=hold,
        workers=WORKERS,
        random_resized_crop=SHARE,
        mean=MEAN,
        std=STD,
    )
    train = data.split("train")
    for epoch in range(2):
        yield BatchLoader(
            train.images,
            train.labels,
            batch_size=BATCH * ranks,
            mean=MEAN,
            std=STD,
            train=True,
            crop=data._crop(),
            locality=train.locality,
            augment=CropFlip(crop_pad=0, flip="random"),
            epoch=lambda epoch=epoch: epoch,
            rank=rank,
            world_size=ranks,
        )


def torchvision_steps() -> Callable:
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, scale=SHARE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def torchvision_batches(root: Path, rank: int, ranks: int) -> Iterator[Iterable]:
    """As PyTorch's ImageNet example has it."""
    from torch.utils.data import DataLoader, DistributedSampler
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(str(root / "train"), torchvision_steps())
    sampler = DistributedSampler(dataset, ranks, rank) if ranks > 1 else None
    options = {"shuffle": sampler is None, "sampler": sampler, "drop_last": True}
    loader = DataLoader(dataset, BATCH, num_workers=WORKERS, persistent_workers=True, **options)
    for _ in range(2):
        yield loader


def timm_batches(root: Path, rank: int, ranks: int) -> Iterator[Iterable]:
    """As timm's ``train.py`` makes it, on the CPU."""
    from timm.data import create_dataset, create_loader

    dataset = create_dataset("", str(root / "train"))
    if ranks > 1:  # its own way asks for a process group
        dataset.reader.samples = dataset.reader.samples[rank::ranks]
    loader = create_loader(
        dataset,
        (3, SIZE, SIZE),
        BATCH,
        is_training=True,
        scale=SHARE,
        color_jitter=0.0,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=WORKERS,
        device=torch.device("cpu"),
    )
    for _ in range(2):
        yield loader


def webdataset_batches(root: Path, rank: int, ranks: int) -> Iterator[Iterable]:
    """As webdataset's documentation has it; processes and workers take shards of their own."""
    import webdataset

    urls = sorted(map(str, (root / "shards").glob("train-*.tar")))[rank::ranks]
    dataset = (
        webdataset.WebDataset(urls, shardshuffle=100, empty_check=False)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(torchvision_steps(), int)
    )
    options = {"num_workers": WORKERS, "persistent_workers": True, "drop_last": True}
    loader = webdataset.WebLoader(dataset, batch_size=BATCH, **options)
    for _ in range(2):
        yield loader


def show_epochs(loader: str, root: Path, rank: int, ranks: int) -> dict[str, float]:
    """Two epochs in this process: images a second, and seconds to the first batch of all."""
    packages = {
        **dict.fromkeys(OURS, ("cvattn.data.images.folder",)),
        **dict.fromkeys(RIVALS, ("torchvision", "timm")),
        SHARDS[0]: ("cvattn.data.images.webdataset",),
        SHARDS[1]: ("torchvision", "webdataset"),
    }
    for package in packages[loader]:
        importlib.import_module(package)
    before, began = memory([os.getpid()]), time.perf_counter()
    if loader in (*OURS, SHARDS[0]):
        epochs = our_batches(loader, root, rank, ranks)
    else:
        rivals = (torchvision_batches, timm_batches, webdataset_batches)
        make = dict(zip((*RIVALS, SHARDS[1]), rivals, strict=True))[loader]
        epochs = make(root, rank, ranks)
    found = {f"{kind} of imports": size for kind, size in before.items()}
    for number, batches in enumerate(epochs, start=1):
        images, start = 0, time.perf_counter()
        for pixels, _ in batches:
            assert pixels.dtype == torch.float32
            if not images:
                first = time.perf_counter()
            images += len(pixels)
        if not images:
            raise SystemExit(
                f"{loader}, process {rank + 1} of {ranks}: no batch of {BATCH} in an epoch; what "
                "does not fill one is dropped, by webdataset in each worker. Take more "
                "photographs: --count 600 is enough"
            )
        # All of it: what was made ahead of the first batch would come for nothing.
        found[f"epoch {number}"] = images / (time.perf_counter() - start)
        if number == 1:
            found["start"] = first - began
    return found


def memory(processes: Iterable[int]) -> dict[str, float]:
    """PSS and USS of processes together, in GiB."""
    total = {"PSS": 0, "USS": 0}
    for process in processes:
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:  # it is over
            continue
        for line in text.splitlines():
            name, _, size = line.partition(":")
            if name == "Pss":
                total["PSS"] += int(size.split()[0])
            elif name in ("Private_Clean", "Private_Dirty"):
                total["USS"] += int(size.split()[0])
    return {kind: size / 2**20 for kind, size in total.items()}


def tree(process: int) -> list[int]:
    """A process and those that it has started."""
    found = [process]
    for each in found:
        try:
            listed = Path(f"/proc/{each}/task/{each}/children").read_text()
        except OSError:
            continue
        found += map(int, listed.split())
    return found


def measured(loader: str, root: Path, cache: Path, ranks: int = 1) -> list[dict[str, float]]:
    """Two epochs in processes of their own; with the peak of each one's memory."""
    environment = {**os.environ, "CVATTN_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--folder", str(root), "--loader", loader]
    processes = [
        subprocess.Popen(
            [*command, "--rank", str(rank), str(ranks)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(ranks)
    ]
    peaks = [{"PSS": 0.0, "USS": 0.0} for _ in processes]
    while any(process.poll() is None for process in processes):
        for peak, process in zip(peaks, processes, strict=True):
            now = memory(tree(process.pid))
            peak |= {kind: max(size, peak[kind]) for kind, size in now.items()}
        time.sleep(0.2)
    found = []
    for peak, process in zip(peaks, processes, strict=True):
        if process.returncode:
            raise SystemExit(f"{loader}: exit code {process.returncode}")
        assert process.stdout is not None
        own = json.loads(process.stdout.read().splitlines()[-1])
        above = {f"{kind} above imports": peak[kind] - own[f"{kind} of imports"] for kind in peak}
        found.append({**own, **peak, **above})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=40_000, help="photographs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="the file of rows")
    parser.add_argument("--folder", type=Path, help="with photographs, to be kept")
    parser.add_argument("--loader", choices=[*OURS, *RIVALS, *SHARDS], help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.loader:
        torch.set_num_threads(1)
        print(json.dumps(show_epochs(args.loader, args.folder, *args.rank)))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        root = args.folder or Path(scratch) / "photographs"
        if not (root / "train").is_dir():
            Console().print(f"drawing {args.count:,} photographs")
            draw_folder(root, args.count)
        if not (root / "shards").is_dir():
            write_shards(root)
        rows = compared(root, Path(scratch), args.rounds, args.count)
    facts = machine.facts()
    name = f"loading_{machine.slug(facts['cpu'])}.csv"
    write_rows(args.output or machine.ROOT / "results" / name, COLUMNS, [r | facts for r in rows])
    return 0


def compared(root: Path, scratch: Path, rounds: int, count: int) -> list[dict[str, object]]:
    """The rows of all rounds."""
    loaders = (*OURS, *RIVALS, *SHARDS)
    first: dict[str, list[Mapping[str, float]]] = {loader: [] for loader in loaders}
    again: dict[str, list[Mapping[str, float]]] = {loader: [] for loader in loaders}
    both: dict[str, list[Mapping[str, float]]] = {loader: [] for loader in loaders}
    for number in range(rounds):
        turn = loaders[number % len(loaders) :] + loaders[: number % len(loaders)]
        cache = scratch / f"cache{number}"
        for loader in turn:
            first[loader] += measured(loader, root, cache)
        for loader in turn:
            again[loader] += measured(loader, root, cache)
        for loader in turn:
            both[loader] += measured(loader, root, cache, ranks=2)
        shutil.rmtree(cache, ignore_errors=True)
    rows: list[dict[str, object]] = []
    console = Console(highlight=False)

    def say(loader: str, figure: str, values: Iterable[float], most: float | None = None) -> None:
        low, middle, high = values
        row = {"loader": loader, "figure": figure, "rounds": rounds, "images": count}
        row |= {"median": f"{middle:.4g}", "low": f"{low:.4g}", "high": f"{high:.4g}"}
        text = f"{loader}: {figure} {middle:.4g} ({low:.4g} to {high:.4g})"
        if most is not None:
            row |= {"target": most}
            row["met"] = "yes" if high <= most else "no" if low > most else "open"
            text += f", asked: at most {most}"
        console.print(text)
        rows.append(row)

    def spread(found: list[Mapping[str, float]], key: str) -> tuple[float, float, float]:
        values = [each[key] for each in found]
        return min(values), statistics.median(values), max(values)

    for loader in loaders:
        most = LARGEST_GIB if loader in (*OURS, SHARDS[0]) else None
        say(loader, "images/s, first epoch", spread(first[loader], "epoch 1"))
        say(loader, "images/s, second epoch", spread(first[loader], "epoch 2"))
        say(loader, "seconds to the first batch", spread(first[loader], "start"))
        say(loader, "the same, of a second run", spread(again[loader], "start"))
        say(loader, "GiB (PSS) of 1 process", spread(first[loader], "PSS"))
        say(loader, "GiB (USS) of 1 process", spread(first[loader], "USS"))
        say(loader, "GiB (PSS) of each of 2 processes", spread(both[loader], "PSS"))
        say(loader, "GiB (USS) of each of 2 processes", spread(both[loader], "USS"))
        say(loader, "GiB above imports, 1", spread(first[loader], "USS above imports"), most)
        say(loader, "GiB above imports, each of 2", spread(both[loader], "USS above imports"), most)
    for loader, rival in (*product(OURS, RIVALS), SHARDS):
        for epoch in ("epoch 1", "epoch 2"):
            times = [
                [1 / each[epoch] for run in (first, again) for each in run[name]]
                for name in (loader, rival)
            ]
            middle, low, high = paired_ratio(*times)
            say(loader, f"time, {epoch}, ours : {rival}", (low, middle, high), 1.0)
    return rows


if __name__ == "__main__":
    sys.exit(main())

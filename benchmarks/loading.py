"""Training batches of photographs: ours beside torchvision's, timm's and webdataset's loaders.

    python benchmarks/loading.py                    rows in results/loading_<machine>.csv
    python benchmarks/loading.py --count 2000       does everything work?
    python benchmarks/loading.py --only "ours, mapped" "timm create_loader"

40,000 JPEGs of 224 x 224 are drawn (smooth at every scale, quality 90), in 10 folders. Each loader
shows two epochs of them in batches of 128: a random resized crop of 8 to 100 % of the area to
224 x 224, half of them mirrored, normalised, float32; no other work, so what is measured is what a
loader can give at most. All use two workers: threads in ours, processes in the others.
``data.hold=mapped`` decodes into a cache of its own, anew in each round, which is part of its first
epoch. The same files, in shards of 1,000, are read by ``data=webdataset`` (from any place at any
time) and by webdataset's own loader (from the front, through a buffer of 1,000); ours first finds
out where each file is. Then come a second run, for the time until it begins, and one of two
processes at once, for their memory: both end after 5,000 photographs.

Each figure is of a process of its own that has imported everything, on files that the system has
read before; rounds take the loaders in turn. Memory is what the kernel says of a process and its
workers together, looked at every 0.2 s: PSS shares what is shared, USS leaves it out. "Above
imports" is what came after them.
"""

import argparse
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path

import machine
import torch
from paired import paired_ratio
from photograph_loaders import BATCH, LOADERS, OURS, PACKAGES, RIVALS, SHARDS, batches_of
from photographs import draw_folder, write_shards
from rich.console import Console
from rows import write_rows

from cvattn.system.machine import usable_cores

MOST = 5000  # photographs of a run that is not timed
COLUMNS = (
    *("loader", "figure", "median", "low", "high", "target", "met", "rounds", "images"),
    *("torch", "commit", "cpu", "cores", "bf16_instructions", "date"),
)
LARGEST_GIB = 2.0  # of a process, above its imports


def show_epochs(
    loader: str, root: Path, rank: int, ranks: int, most: int | None
) -> dict[str, float]:
    """Two epochs in this process: images a second, and seconds to the first batch of all.

    Args:
        most: end after so many images; None: with the second epoch.
    """
    for package in PACKAGES[loader]:
        importlib.import_module(package)
    before, began = memory([os.getpid()]), time.perf_counter()
    found = {f"{kind} of imports": size for kind, size in before.items()}
    for number, batches in enumerate(batches_of(loader, root, rank, ranks), start=1):
        images, start = 0, began if number == 1 else time.perf_counter()
        for pixels, _ in batches:
            assert pixels.dtype == torch.float32
            if not images:
                first = time.perf_counter()
            images += len(pixels)
            if most is not None and images >= most:
                break
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
        if most is not None:
            break
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


def measured(
    loader: str, root: Path, cache: Path, *, ranks: int = 1, most: int | None = None
) -> list[dict[str, float]]:
    """What ``show_epochs`` finds in processes of their own; with the peak of each one's memory."""
    for path in root.rglob("*.*"):  # else the first to read from the disk would read for all
        path.read_bytes()
    environment = {**os.environ, "CVATTN_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--folder", str(root), "--loader", loader]
    command += [] if most is None else ["--most", str(most)]
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
    parser.add_argument("--only", nargs="+", choices=LOADERS, default=LOADERS, help="these loaders")
    parser.add_argument("--loader", choices=LOADERS, help=argparse.SUPPRESS)
    parser.add_argument("--most", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.loader:
        torch.set_num_threads(1)
        print(json.dumps(show_epochs(args.loader, args.folder, *args.rank, args.most)))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        root = args.folder or Path(scratch) / "photographs"
        if not (root / "train").is_dir():
            Console().print(f"drawing {args.count:,} photographs")
            draw_folder(root, args.count)
        if not (root / "shards").is_dir():
            write_shards(root)
        rows = compared(args.only, root, Path(scratch), args.rounds, args.count)
    facts = machine.facts() | {"cores": str(usable_cores())}
    name = f"loading_{machine.slug(facts['cpu'])}.csv"
    write_rows(args.output or machine.ROOT / "results" / name, COLUMNS, [r | facts for r in rows])
    return 0


def compared(
    loaders: Sequence[str], root: Path, scratch: Path, rounds: int, count: int
) -> list[dict[str, object]]:
    """The rows of all rounds."""
    first: dict[str, list[Mapping[str, float]]] = {loader: [] for loader in loaders}
    again: dict[str, list[Mapping[str, float]]] = {loader: [] for loader in loaders}
    both: dict[str, list[Mapping[str, float]]] = {loader: [] for loader in loaders}
    for number in range(rounds):
        turn = [*loaders[number % len(loaders) :], *loaders[: number % len(loaders)]]
        cache = scratch / f"cache{number}"
        for loader in turn:
            first[loader] += measured(loader, root, cache)
        for loader in turn:
            again[loader] += measured(loader, root, cache, most=MOST)
        for loader in turn:
            both[loader] += measured(loader, root, cache, ranks=2, most=MOST)
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
        if loader not in loaders or rival not in loaders:
            continue
        for epoch in ("epoch 1", "epoch 2"):
            times = ([1 / run[epoch] for run in first[name]] for name in (loader, rival))
            middle, low, high = paired_ratio(*times)
            say(loader, f"time, {epoch}, ours : {rival}", (low, middle, high), 1.0)
    return rows


if __name__ == "__main__":
    sys.exit(main())

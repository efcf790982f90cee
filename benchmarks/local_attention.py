"""Local attention of ours and as others write it: time of a forward and backward pass.

    python benchmarks/local_attention.py                     all kinds, on 256 x 256
    python benchmarks/local_attention.py --only window cross --sides 64 128 256
    python benchmarks/local_attention.py --quick             tiny: does everything work?

The methods of a kind take turns, round by round, in one process, on the same query, key and value,
and are compared before they are timed. Rows go to results/local_attention_<machine>.csv.
"""

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import machine
import torch
import torch.nn.functional as F
from paired import paired_ratio, quartiles
from torch import Tensor

from cvattn.core.local import criss_cross_attention, neighborhood_attention, window_attention

SEED = 20263
OURS = "ours"
WINDOW, NEIGHBORHOOD = 8, 7
COLUMNS = (
    *("kind", "method", "batch", "heads", "qk_width", "value_width", "height", "width"),
    *("median_ms", "q1_ms", "q3_ms", "rounds", "ratio", "ratio_low", "ratio_high", "error", "note"),
    *("torch", "commit", "cpu", "threads", "bf16_instructions", "date"),
)
Method = Callable[[Tensor, Tensor, Tensor], Tensor]
WIDTHS = ((1, 64, 64), (4, 16, 16), (1, 8, 64))  # heads, of query and key, of the value


def swin(query: Tensor, key: Tensor, value: Tensor, *, shift: int) -> Tensor:
    """As Swin's published networks do: pad, roll, cut, all scores of all windows, a mask."""
    batch, heads, height, width, _ = query.shape
    bottom, right = -height % WINDOW, -width % WINDOW
    parts = []
    for x in (query, key, value):
        x = F.pad(x, (0, 0, 0, right, 0, bottom)).roll((-shift, -shift), (2, 3))
        x = x.unflatten(3, (-1, WINDOW)).unflatten(2, (-1, WINDOW)).permute(0, 2, 4, 1, 3, 5, 6)
        parts.append(x.reshape(-1, heads, WINDOW * WINDOW, x.shape[-1]))
    scores = parts[0] * query.shape[-1] ** -0.5 @ parts[1].mT
    rows, columns = (height + bottom) // WINDOW, (width + right) // WINDOW
    if shift or bottom or right:
        region = query.new_zeros(height + bottom, width + right)
        cuts = [slice(0, -WINDOW), slice(-WINDOW, -shift or None), slice(-shift, None)]
        for number, (y, x) in enumerate((y, x) for y in cuts[: 2 + bool(shift)] for x in cuts):
            region[y, x] = number
        region = region.view(rows, WINDOW, columns, WINDOW).transpose(1, 2).flatten(2).flatten(0, 1)
        term = torch.zeros_like(region[:, None] - region[:, :, None])
        term = term.masked_fill(region[:, None] != region[:, :, None], -100.0)
        scores = scores.unflatten(0, (batch, -1)) + term[None, :, None]
        scores = scores.flatten(0, 1)
    output = scores.softmax(-1) @ parts[2]
    output = output.view(batch, rows, columns, heads, WINDOW, WINDOW, -1)
    output = output.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)
    return output.roll((shift, shift), (2, 3))[:, :, :height, :width]


def unfolded(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Neighbourhoods by ``unfold``: a copy of all keys for each query; windows move inwards."""
    height, width = query.shape[2:4]
    reach = NEIGHBORHOOD // 2
    y, x = (
        (torch.arange(n, device=query.device) - reach).clamp(0, n - NEIGHBORHOOD)
        for n in (height, width)
    )

    def copies(maps: Tensor) -> Tensor:
        maps = maps.unfold(2, NEIGHBORHOOD, 1).unfold(3, NEIGHBORHOOD, 1)
        return maps[:, :, y][:, :, :, x].flatten(-2)  # (B, heads, H, W, E, keys)

    scores = (query * query.shape[-1] ** -0.5)[..., None, :] @ copies(key)
    return (scores.softmax(-1) @ copies(value).mT).squeeze(-2)


def ccnet(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """As CCNet's published module does: products along columns and rows, side by side."""
    height = query.shape[2]
    query = query * query.shape[-1] ** -0.5
    column = (query.transpose(2, 3) @ key.transpose(2, 3).mT).transpose(2, 3)
    own = torch.full((height,), float("-inf"), device=query.device).diag()
    own = own.nan_to_num(0.0, neginf=float("-inf"))
    scores = torch.cat([column + own[:, None], query @ key.mT], -1).softmax(-1)
    column, row = scores[..., :height], scores[..., height:]
    return (column.transpose(2, 3) @ value.transpose(2, 3)).transpose(2, 3) + row @ value


def sdpa_rows(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Axial attention by torch's function: rows are part of the batch."""
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    output = F.scaled_dot_product_attention(q, k, v)
    return output.unflatten(0, (query.shape[0], -1)).transpose(1, 2)


KINDS: dict[str, dict[str, Method]] = {
    "window": {
        OURS: lambda q, k, v: window_attention(q, k, v, window=(WINDOW, WINDOW)),
        "swin": lambda q, k, v: swin(q, k, v, shift=0),
    },
    "shifted": {
        OURS: lambda q, k, v: window_attention(
            q, k, v, window=(WINDOW, WINDOW), shift=(WINDOW // 2, WINDOW // 2)
        ),
        "swin": lambda q, k, v: swin(q, k, v, shift=WINDOW // 2),
    },
    "axial": {
        OURS: lambda q, k, v: window_attention(q, k, v, window=(1, q.shape[3])),
        "SDPA": sdpa_rows,
    },
    "neighborhood": {
        OURS: lambda q, k, v: neighborhood_attention(q, k, v, window=(NEIGHBORHOOD, NEIGHBORHOOD)),
        "unfold": unfolded,
    },
    "cross": {OURS: criss_cross_attention, "CCNet": ccnet},
}


def main() -> int:
    args = _arguments()
    facts = machine.facts()
    name = f"local_attention_{machine.slug(facts['cpu'])}{'_quick' if args.quick else ''}.csv"
    output = args.output or machine.ROOT / "results" / name
    torch.set_num_threads(args.threads or machine.cores())
    rows = []
    for kind in args.only:
        for side in args.sides:
            for widths in WIDTHS:
                rows += _measure(kind, side, widths, args.rounds, facts)
                for row in rows[-len(KINDS[kind]) :]:
                    print(*(row[key] for key in COLUMNS[:10]), row["ratio"], row["error"])
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)
    print(f"Rows: {output.name}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=[*KINDS], default=[*KINDS], metavar="KIND")
    parser.add_argument("--sides", type=int, nargs="+", default=[256], help="of square maps")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, help="of torch; without it, all cores")
    parser.add_argument("--quick", action="store_true", help="tiny maps, two rounds")
    parser.add_argument("--output", type=Path, metavar="FILE.csv", help="another results file")
    args = parser.parse_args()
    if args.rounds < 1 or min(args.sides) < WINDOW:
        parser.error(f"expected at least 1 round, and sides of at least {WINDOW}")
    if args.quick:
        args.sides, args.rounds = [24], 2
    return args


def _measure(
    kind: str, side: int, widths: tuple[int, int, int], rounds: int, facts: dict[str, str]
) -> list[dict[str, str]]:
    """A row for each method; ``ratio`` is our time over theirs, round by round."""
    heads, width, value_width = widths
    torch.manual_seed(SEED)
    # As convolutions give them: channels before positions.
    drawn = [torch.randn(1, heads, e, side, side) for e in (width, width, value_width)]
    upstream = torch.randn(1, heads, value_width, side, side).movedim(2, -1)
    maps = [x.movedim(2, -1).requires_grad_() for x in drawn]

    def step(method: Method) -> list[Tensor]:
        output = method(*maps)
        return [output.detach(), *torch.autograd.grad(output, maps, upstream)]

    methods = KINDS[kind]
    expected = step(methods[OURS])
    errors = {name: _distance(step(method), expected) for name, method in methods.items()}
    wrong = {name: error for name, error in errors.items() if error > 1e-4}
    if wrong:
        raise SystemExit(f"{kind}, side {side}, widths {widths}: methods differ, {wrong}")
    times: dict[str, list[float]] = {name: [] for name in methods}
    for index in range(rounds):
        order = list(methods.items())
        for name, method in order if index % 2 == 0 else reversed(order):
            start = time.perf_counter()
            step(method)
            times[name].append(1000 * (time.perf_counter() - start))
    found = []
    for name in methods:
        low, _, high = quartiles(times[name])
        ratio, ratio_low, ratio_high = paired_ratio(times[OURS], times[name])
        numbers = {"median_ms": statistics.median(times[name]), "q1_ms": low, "q3_ms": high}
        numbers |= {"ratio": ratio, "ratio_low": ratio_low, "ratio_high": ratio_high}
        sizes = (1, heads, width, value_width, side, side)
        found.append(
            {"kind": kind, "method": name, "rounds": str(rounds), **facts}
            | dict(zip(COLUMNS[2:8], map(str, sizes), strict=True))
            | {key: f"{number:.4g}" for key, number in numbers.items()}
            | {"error": f"{errors[name]:.2g}", "threads": str(torch.get_num_threads())}
        )
    return found


def _distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative 2-norm, of the output and the gradients."""
    pairs = zip(found, expected, strict=True)
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


if __name__ == "__main__":
    sys.exit(main())

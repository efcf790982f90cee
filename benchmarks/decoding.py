"""What the key/value cache brings: greedy decoding with and without it, on the same kernels.

    python benchmarks/decoding.py            the default reader, 32 lines, 64 tokens each
    python benchmarks/decoding.py --quick    tiny: does everything work?

Both sides decode the same memory with END forbidden, so that every line takes all tokens, and must
give the same tokens; they take turns. A second table has the time of one step as lines end and
leave the batch. Rows go to results/decoding_<machine>.csv, in place of earlier ones.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import machine
import torch
import yaml
from paired import paired_ratio, quartiles
from rich.console import Console
from rich.table import Table
from rows import write_rows
from torch import Tensor

from cvattn.core.alphabet import BEGIN, END
from cvattn.models import Reader
from cvattn.models.decoding import Continuation, Hypotheses, Step, greedy

VOCAB, HEIGHT, WIDTH = 13, 32, 256
TARGET = 4.0
COLUMNS = (
    *("what", "lines", "tokens", "median_ms", "q1_ms", "q3_ms", "rounds"),
    *("speedup", "speedup_low", "speedup_high", "target", "met"),
    *("torch", "commit", "cpu", "threads", "bf16_instructions", "date"),
)
Row = dict[str, str]


class Recomputing:
    """The step function without a cache: the decoder sees the whole prefix each time."""

    def __init__(self, network: Reader, memory: Tensor, memory_mask: Tensor) -> None:
        self.network, self.memory, self.memory_mask = network, memory, memory_mask
        self.prefix = torch.empty(len(memory), 0, dtype=torch.int64)

    def __call__(self, tokens: Tensor, rows: Tensor | None) -> Tensor:
        assert rows is None  # no line ends here
        self.prefix = torch.cat([self.prefix, tokens[:, None]], dim=1)
        return self.network.decode(self.prefix, self.memory, self.memory_mask)[:, -1]


def main() -> int:
    args = _arguments()
    torch.manual_seed(0)
    network, lines = _network(args.quick), 3 if args.quick else 32
    tokens = 5 if args.quick else args.tokens
    images, widths = torch.randn(lines, 1, HEIGHT, WIDTH), torch.full((lines,), WIDTH)
    with torch.no_grad():
        memory = network.encode(images, widths)
    rows = _compare(network, memory, lines, tokens, args.rounds)
    rows += _steps(network, memory, lines, args.rounds)
    facts = machine.facts() | {"threads": str(torch.get_num_threads())}
    rows = [row | facts for row in rows]
    name = f"decoding_{machine.slug(facts['cpu'])}{'_quick' if args.quick else ''}.csv"
    output = args.output or machine.ROOT / "results" / name
    write_rows(output, COLUMNS, rows)
    console = Console()
    console.print(_table(rows))
    console.print(f"Rows: {output.name}")
    return 0


def _compare(
    network: Reader, memory: tuple[Tensor, Tensor], lines: int, tokens: int, rounds: int
) -> list[Row]:
    def run(make: Callable[..., Step]) -> Hypotheses:
        step = make(network, *memory)

        def endless(last: Tensor, rows: Tensor | None) -> Tensor:
            logits = step(last, rows)
            logits[:, : END + 1] = -torch.inf
            return logits

        with torch.no_grad():
            return greedy(endless, torch.full((lines,), BEGIN), max_length=tokens)

    sides = {"cached": Continuation, "uncached": Recomputing}
    answers = [run(make).tokens for make in sides.values()]  # also the first, slower, calls
    if not torch.equal(*answers):
        raise RuntimeError("with and without cache the tokens differ")
    times = _in_turn({name: lambda make=make: run(make) for name, make in sides.items()}, rounds)
    speedup = paired_ratio(times["uncached"], times["cached"])
    rows = [_row(name, lines, tokens, times[name]) for name in sides]
    rows[0] |= {
        "speedup": f"{speedup.median:.3g}",
        "speedup_low": f"{speedup.low:.3g}",
        "speedup_high": f"{speedup.high:.3g}",
        "target": f"{TARGET:g}",
        "met": "yes" if speedup.low >= TARGET else "no",
    }
    return rows


def _steps(network: Reader, memory: tuple[Tensor, Tensor], lines: int, rounds: int) -> list[Row]:
    """One cached step while this many lines go on, the cache holding 8 tokens of each."""

    def prepared(left: int) -> Continuation:
        step = Continuation(network, *memory)
        for _ in range(8):
            step(torch.full((lines,), END + 1), None)
        step(torch.full((left,), END + 1), torch.arange(left))
        return step

    counts = [left for left in (32, 16, 8, 4, 2, 1) if left <= lines]
    with torch.no_grad():
        steps = {str(left): prepared(left) for left in counts}
        calls = {
            name: lambda step=step: step(torch.full((len(step.memory),), END + 1), None)
            for name, step in steps.items()
        }
        times = _in_turn(calls, rounds)
    return [_row("step", int(name), 1, times[name]) for name in steps]


def _in_turn(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call in each round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        # Every second round backwards: nothing is always measured after the same other thing.
        for name in list(calls)[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            calls[name]()
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def _network(quick: bool) -> Reader:
    """The default reader, or a tiny one."""
    if quick:
        return Reader(VOCAB, embed_dim=16, num_heads=2, ffn_dim=16, stem=(4, 8)).eval()
    options = yaml.safe_load((machine.ROOT / "conf/model/reader.yaml").read_text())
    for key in ("defaults", "_target_", "target_vocab", "height"):
        del options[key]
    return Reader(VOCAB, height=HEIGHT, **options).eval()


def _row(what: str, lines: int, tokens: int, times: list[float]) -> Row:
    low, middle, high = quartiles(times)
    return dict.fromkeys(COLUMNS, "") | {
        "what": what,
        "lines": str(lines),
        "tokens": str(tokens),
        "median_ms": f"{middle:.4g}",
        "q1_ms": f"{low:.4g}",
        "q3_ms": f"{high:.4g}",
        "rounds": str(len(times)),
    }


def _table(rows: list[Row]) -> Table:
    table = Table(title="greedy decoding", title_justify="left")
    shown = ("what", "lines", "tokens", "median_ms", "speedup", "target", "met")
    for name in shown:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    return table


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="tiny: does everything work?")
    parser.add_argument("--output", type=Path, metavar="FILE.csv", help="another results file")
    args = parser.parse_args()
    if args.rounds < 1 or args.tokens < 1:
        parser.error("--rounds and --tokens: expected at least 1")
    return args


if __name__ == "__main__":
    raise SystemExit(main())

"""Is the library slower than it was? Two versions of cvattn, in turn, on the benchmark's cases.

    python benchmarks/checkouts.py v1.2                    that commit against the working tree
    python benchmarks/checkouts.py v1.2 --only 'map-*'     some cases
    python benchmarks/checkouts.py v1.2 --clock cpu --threads 1    where others use the machine too

For each case two processes that differ in nothing but cvattn wait side by side; in each round both
take a sample, in an order drawn anew. Cases, peers and statistics are those of this folder. Ends
with 1 if the median of new : old lies above the bound in a case. Writes no file.
"""

import argparse
import fnmatch
import os
import random
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from cases import CASES, QUICK_CASES, Case
from machine import ROOT
from paired import Median, paired_ratio
from rich.console import Console
from rich.table import Table

TURNS = Path(__file__).with_name("turns.py")


class Worker:
    """A process that times the case with one version of the library when it is asked to."""

    def __init__(self, case: Case, code: Path, options: list[str]) -> None:
        command = [sys.executable, str(TURNS), case.name, str(code), *options]
        env = {**os.environ, "PYTHONPATH": str(code)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env)

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(map(str, self.process.args))} has ended early")
        return line

    def turn(self) -> float:
        """Milliseconds of a step."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.answer())

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def compare(case: Case, old: Path, new: Path, options: list[str], rounds: int) -> Median:
    """The ratio of times new : old, each round's taken together."""
    with Worker(case, old, options) as before, Worker(case, new, options) as after:
        workers = [before, after]
        for worker in workers:
            worker.answer()
        times: dict[Worker, list[float]] = {worker: [] for worker in workers}
        shuffle = random.Random(0).shuffle
        for _ in range(rounds):
            shuffle(workers)
            for worker in workers:
                times[worker].append(worker.turn())
    return paired_ratio(times[after], times[before])


def checkout(revision: str, folder: Path) -> Path:
    """The library as it was at a commit, in a folder of its own."""
    archive = folder / "cvattn.tar"
    command = ["git", "archive", "-o", str(archive), revision, "cvattn"]
    subprocess.run(command, cwd=ROOT, check=True)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", help="a commit, or a folder that has a cvattn")
    parser.add_argument("--only", metavar="PATTERN", nargs="+", help="cases by name")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--bound", type=float, default=1.03, help="highest median of new : old")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--threads", type=int, help="of each process; default: torch's own")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: expected at least 1")
    cases = list(CASES)
    if args.only:
        every = CASES + QUICK_CASES
        cases = [c for c in every if any(fnmatch.fnmatchcase(c.name, each) for each in args.only)]
    if not cases:
        parser.error(
            f"--only {' '.join(args.only)}: no case has such a name; attention.py --list names them"
        )
    options = ["--clock", args.clock]
    if args.threads:
        options += ["--threads", str(args.threads)]
    console, slower = Console(), []
    table = Table("case", "new : old", "95 % of medians")
    with tempfile.TemporaryDirectory() as folder:
        old = Path(args.old)
        if not (old / "cvattn").is_dir():
            try:
                old = checkout(args.old, Path(folder))
            except subprocess.CalledProcessError:
                parser.error(f"{args.old} is no commit, and no folder that has a cvattn")
        for case in cases:
            ratio = compare(case, old, ROOT, options, args.rounds)
            text = f"{ratio.median:.3f}", f"{ratio.low:.3f} to {ratio.high:.3f}"
            console.print(f"{case.name}: {text[0]} ({text[1]})", highlight=False)
            colour = "[red]" if ratio.median > args.bound else ""
            table.add_row(case.name, colour + text[0], text[1])
            if ratio.median > args.bound:
                slower.append(case.name)
    console.print(table)
    console.print(
        f"[red]above {args.bound}: {', '.join(slower)}" if slower else f"none above {args.bound}"
    )
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())

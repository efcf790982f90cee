"""Ours and the alternatives side by side: time and peak memory, against the figures we promise.

    python benchmarks/attention.py                    all cases; leaves out what is measured already
    python benchmarks/attention.py --only 'scan*'     some of them
    python benchmarks/attention.py --only 'padding-*' 'causal-*' '*bfloat16*'
    python benchmarks/attention.py --plot             the picture and the table again, from the file

Each case is timed in a process of its own, in which the methods take turns; each peak of memory is
taken in a fresh process. Rows go to results/attention_<machine>.csv as each case ends.
"""

import argparse
import fnmatch
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import machine
from cases import CASES, FEWEST, LOCAL_PEERS, OURS, QUICK_CASES, ROW, Case
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rows import Row, exponent, is_measured, make_rows, put_rows, read_rows

HERE = Path(__file__).resolve().parent
EXPONENTS = (
    ("scan-map-", OURS, 1.1),
    ("scan-class_row-", ROW, 1.1),
    *((f"form-{kind}-", OURS, 1.1) for kind in ("map", "unet", *LOCAL_PEERS)),
)


def main() -> int:
    args = _arguments()
    console = Console()
    facts = machine.facts()
    name = f"attention_{machine.slug(facts['cpu'])}{'_quick' if args.quick else ''}.csv"
    output = args.output or machine.ROOT / "results" / name
    failed = []
    if not args.plot:
        failed = _measure(_chosen(args), args, output, facts, console)
    rows = read_rows(output)
    console.print(_summary(rows))
    for prefix, method, bound in EXPONENTS:
        grows = exponent(rows, prefix, method)
        if grows is not None:
            met = "met" if grows <= bound else "MISSED"
            console.print(f"Peak of {method!r} grows with N to the {grows:.2f} (<= {bound}: {met})")
    if any(row["case"].startswith("scan-map-") for row in rows):
        from picture import draw  # matplotlib is slow to load

        if draw(rows, output.with_suffix(".png")):
            console.print(f"Picture: {output.with_suffix('.png').name}")
    if any(row["case"].startswith("form-") for row in rows):
        from forms_picture import draw_forms

        forms = output.with_name(f"{output.stem}_forms.png")
        if draw_forms(rows, forms):
            console.print(f"Picture: {forms.name}")
    console.print(f"Rows: {output.name}")
    for case in failed:
        console.print(f"[red]failed: {case}")
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        nargs="+",
        default=["*"],
        help="cases by name; *, ? and [] as in a shell",
    )
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--rounds", type=int, help="exactly this many rounds in every case")
    parser.add_argument("--again", action="store_true", help="also what is measured already")
    parser.add_argument("--quick", action="store_true", help="tiny cases: does everything work?")
    parser.add_argument("--plot", action="store_true", help="measure nothing")
    parser.add_argument("--output", type=Path, metavar="FILE.csv", help="another results file")
    args = parser.parse_args()
    if args.rounds is not None and args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: expected at least 1")
    if args.output is not None and args.output.suffix != ".csv":
        parser.error(f"--output {args.output}: expected a name ending in .csv")
    if not _chosen(args):
        parser.error(f"--only {' '.join(args.only)}: no case has such a name; --list names them")
    if args.list:
        print("\n".join(case.name for case in _chosen(args)))
        raise SystemExit
    return args


def _chosen(args: argparse.Namespace) -> list[Case]:
    cases = QUICK_CASES if args.quick else CASES
    return [c for c in cases if any(fnmatch.fnmatchcase(c.name, each) for each in args.only)]


def _measure(
    cases: list[Case],
    args: argparse.Namespace,
    output: Path,
    facts: dict[str, str],
    console: Console,
) -> list[str]:
    """Run what is not in the file yet; returns the names of the cases that failed."""
    there = [] if args.again else read_rows(output)
    done = [c for c in cases if is_measured(there, c, facts, rounds=_rounds(c, args) or FEWEST)]
    if done:
        console.print(f"measured already: {len(done)} of {len(cases)}; --again repeats them")
    waiting = [case for case in cases if case not in done]
    failed = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("", total=len(waiting))

        def say(text: str) -> None:
            progress.update(task, description=text)

        for case in waiting:
            start = time.perf_counter()
            try:
                rows = _run_case(case, args, facts, say)
            except RuntimeError as error:
                console.print(f"[red]{case.name}: {error}")
                failed.append(case.name)
            else:
                put_rows(output, rows)
                medians = ", ".join(
                    f"{r['method']} {r['median_ms']} ms {r['peak_mib']} MiB"
                    for r in rows
                    if r["median_ms"]
                )
                took = time.perf_counter() - start
                console.print(f"{case.name} ({took:.0f} s): {medians}", highlight=False)
            progress.advance(task)
    return failed


def _rounds(case: Case, args: argparse.Namespace) -> int | None:
    """How many rounds are asked for; None = by time."""
    return args.rounds or (3 if args.quick else case.rounds)


def _run_case(
    case: Case, args: argparse.Namespace, facts: dict[str, str], say: Callable[[str], None]
) -> list[Row]:
    say(f"{case.name}: time")
    rounds = _rounds(case, args)
    options = [] if rounds is None else ["--rounds", str(rounds)]
    if args.quick:
        options += ["--sample", "0.005"]
    timing = _worker("timing.py", case.name, *options)
    peaks = {}
    for name in case.methods:
        say(f"{case.name}: memory, {name}")
        peaks[name] = {} if name in timing["notes"] else _worker("peak_memory.py", case.name, name)
    return make_rows(case, timing, peaks, facts)


def _worker(script: str, *words: str) -> dict:
    """The JSON that a script of ours prints, from a process of its own."""
    done = subprocess.run(
        [sys.executable, str(HERE / script), *words], capture_output=True, text=True
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [""]
        raise RuntimeError(f"{script} {' '.join(words)} ended with {done.returncode}: {last[0]}")
    return json.loads(done.stdout.splitlines()[-1])


def _summary(rows: list[Row]) -> Table:
    """The rows that have a target, with the ratio, its interval and whether it is met."""
    table = Table(title="Against the targets")
    for column in ("case", "ours :", "time", "target", "memory", "target", "met"):
        table.add_column(column, overflow="fold")
    for row in rows:
        verdicts = [row[key] for key in ("ratio_met", "memory_met") if row[key]]
        if not verdicts:
            continue
        interval = f"{row['ratio']} ({row['ratio_low']} to {row['ratio_high']})"
        memory, bound = row["memory_ratio"], row["target_memory_ratio"]
        if row["target_total_mib"]:
            memory, bound = f"{row['total_mib']} MiB", f"{row['target_total_mib']} MiB"
        table.add_row(
            row["case"],
            row["versus"],
            interval if row["ratio"] else "",
            row["target_ratio"],
            memory,
            bound,
            "[green]yes" if "no" not in verdicts else "[red]no",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())

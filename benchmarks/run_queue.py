"""A queue of training runs, each written down as it ends.

    python benchmarks/run_queue.py benchmarks/cifar10.yaml            the runs that are not done yet
    python benchmarks/run_queue.py benchmarks/cifar10.yaml --only 'sagan*'
    python benchmarks/run_queue.py benchmarks/cifar10.yaml --list    what there is and what is done
    python benchmarks/run_queue.py benchmarks/cifar10.yaml --plot    the curves again, from the file

The YAML file names each run: its overrides of `python train.py`, and its seeds. A finished run adds
a row to results/<file>.csv and its epochs to results/<file>_curves.csv. Stop it with Ctrl-C at any
time: started again, it goes on with the run that was interrupted, where that was. A run that fails
does not keep the others from theirs; it is named at the end, with exit code 1.

A row stays when the recipe behind its command changes (each has its commit): delete it then.
"""

import argparse
import fnmatch
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import machine
from means import means_table
from queue_jobs import Job, ListError, read_jobs
from queue_rows import COLUMNS, CURVE_COLUMNS, append, epochs_of, read_rows, row_of
from rich.console import Console

from cvattn.harness.config.paths import assigned
from cvattn.harness.reporting.summary import read_summary
from cvattn.system.files import CannotWrite


def main() -> int:
    args = _arguments()
    console = Console(soft_wrap=True, highlight=False)
    try:
        jobs = [j for j in read_jobs(args.file) if fnmatch.fnmatchcase(j.run, args.only)]
    except ListError as error:
        console.print(error, markup=False)
        return 2
    results = args.output or machine.ROOT / "results" / f"{args.file.stem}.csv"
    if not jobs:
        console.print(f"--only {args.only}: {args.file} has no such run")
        return 2
    done = {(row["run"], row["command"]) for row in read_rows(results)}
    left = [job for job in jobs if job.key not in done]
    if args.list:
        for job in jobs:
            state = "done" if job.key in done else "to do"
            console.print(f"{state}  {job.run}  {job.command}", markup=False)
        return 0
    again = shlex.join(["python", *sys.argv])
    with signals_to(_stop):
        try:
            return _work([] if args.plot else left, args.folder.absolute(), results, console)
        except Stopped as stopped:
            console.print(f"The queue goes on with\n  {again}", markup=False)
            return 128 + stopped.number
        except CannotWrite as error:
            console.print(f"{error} The queue goes on with\n  {again}", markup=False)
            return 1


def _work(jobs: Sequence[Job], place: Path, results: Path, console: Console) -> int:
    """Run the jobs, write them down, show and draw what there is; the exit code."""
    curves = results.with_name(f"{results.stem}_curves.csv")
    failed: list[str] = []
    for number, job in enumerate(jobs, start=1):
        console.print(f"{number} of {len(jobs)}: {job.run}  {job.command}", markup=False)
        folder = place / job.folder
        code = run_to_its_end(_start(job, folder))
        if code or read_summary(folder / "summary.json") is None:
            why = f"exit code {code}" if code else "exit code 0 and no whole summary.json"
            failed.append(f"{job.run} ended with {why}; its folder is {folder}")
            console.print(failed[-1], markup=False)
            continue
        row = row_of(job, folder)
        # A run is done when its row is there: what was left by a stop before that is replaced.
        same = {"run": job.run, "seed": str(job.seed)}
        append(curves, CURVE_COLUMNS, epochs_of(job, folder), instead_of=same)
        append(results, COLUMNS, [row])
    console.print(means_table(read_rows(results)))
    if read_rows(curves):
        from curves import draw  # matplotlib is slow to load

        draw(read_rows(curves), results.with_suffix(".png"))
        console.print(f"rows, curves, picture: {results.parent.name}/{results.stem}*")
    for message in failed:
        console.print(message, style="bold red", markup=False)
    return 1 if failed else 0


class Stopped(Exception):
    """Ctrl-C or SIGTERM came for the queue."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def signals_to(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Within it Ctrl-C and SIGTERM go to the handler."""
    before = {n: signal.signal(n, handler) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


def _stop(number: int, frame: object) -> None:
    raise Stopped(number)


def run_to_its_end(command: Sequence[str]) -> int:
    """Run it, and pass Ctrl-C and SIGTERM on to it.

    Returns:
        Its exit code.

    Raises:
        Stopped: a signal came, and the process has ended.
    """
    came: list[int] = []
    started: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: object) -> None:
        came.append(number)
        for process in started:
            process.send_signal(number)

    with signals_to(forward):
        # In a process group of its own, or the terminal's Ctrl-C would reach it twice.
        process = subprocess.Popen(command, cwd=machine.ROOT, process_group=0)
        started.append(process)
        if came:  # while it was being started
            process.send_signal(came[0])
        code = process.wait()
    if came:
        raise Stopped(came[0])
    return code


def _start(job: Job, folder: Path) -> list[str]:
    """The command line, which also continues the run or finds it finished."""
    arguments = [*job.overrides, f"seed={job.seed}", assigned("hydra.run.dir", folder)]
    return [sys.executable, "train.py", *arguments, "resume=auto"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="the list of runs, a YAML file")
    parser.add_argument(
        "--only", default="*", metavar="PATTERN", help="runs by name, as in a shell"
    )
    parser.add_argument("--list", action="store_true", help="show the runs and stop")
    parser.add_argument("--plot", action="store_true", help="train nothing")
    parser.add_argument("--output", type=Path, metavar="FILE.csv", help="another results file")
    parser.add_argument(
        "--folder", type=Path, default=machine.ROOT / "outputs" / "queue", help="of the runs"
    )
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())

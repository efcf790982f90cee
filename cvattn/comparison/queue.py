"""Runs one after the other, each a process of its own, each written down as it ends.

It can be stopped at any time: started again, it goes on with the run that was interrupted, where
that was. A run that fails does not keep the others from theirs.
"""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from cvattn.comparison.jobs import Job
from cvattn.comparison.rows import (
    COLUMNS,
    CURVE_COLUMNS,
    append,
    epochs_of,
    read_rows,
    row_of,
)
from cvattn.harness.config.paths import assigned
from cvattn.harness.reporting.summary import read_summary


class Stopped(Exception):
    """Ctrl-C or SIGTERM came.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def curves_file(results: Path) -> Path:
    """Where the learning curves of the runs in ``results`` are."""
    return results.with_name(f"{results.stem}_curves.csv")


def left(jobs: Sequence[Job], results: Path) -> list[Job]:
    """Those that have no row yet."""
    done = {(row["run"], row["command"]) for row in read_rows(results)}
    return [job for job in jobs if job.key not in done]


def work(jobs: Sequence[Job], *, results: Path, place: Path, console: Console) -> list[str]:
    """Make the runs and write them down.

    Args:
        jobs: all of them are made.
        results: a CSV file, with the learning curves beside it.
        place: each run has a folder in it.
        console: for what is begun.

    Returns:
        What failed, a sentence for each.

    Raises:
        Stopped: by a signal. The run that was going on has ended, and can go on.
        CannotWrite: what was there is as it was.
    """
    failed: list[str] = []
    with _signals_to(_stop):
        for number, job in enumerate(jobs, start=1):
            console.print(f"{number} of {len(jobs)}: {job.run}  {job.command}", soft_wrap=True)
            folder = place.absolute() / job.folder
            # It may have ended just before the queue was stopped.
            code = 0 if _is_done(folder) else _run_to_its_end(training_command(job, folder))
            if code or not _is_done(folder):
                why = f"exit code {code}" if code else "exit code 0 and no whole summary.json"
                failed.append(f"{job.run} ended with {why}; its folder is {folder}")
                console.print(failed[-1], soft_wrap=True)
                continue
            row = row_of(job, folder)
            # A run is done when its row is there: what was left by a stop before is replaced.
            same = {"run": job.run, "seed": str(job.seed)}
            append(curves_file(results), CURVE_COLUMNS, epochs_of(job, folder), instead_of=same)
            append(results, COLUMNS, [row])
    return failed


def training_command(job: Job, folder: Path) -> list[str]:
    """The command line, which also continues the run or finds it finished."""
    arguments = [*job.overrides, f"seed={job.seed}", assigned("hydra.run.dir", folder)]
    return [sys.executable, "-m", "cvattn", "train", *arguments, "resume=auto"]


def _is_done(folder: Path) -> bool:
    return read_summary(folder / "summary.json") is not None


def _run_to_its_end(command: Sequence[str]) -> int:
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

    with _signals_to(forward):
        # In a process group of its own, or the terminal's Ctrl-C would reach it twice.
        process = subprocess.Popen(command, process_group=0)
        started.append(process)
        if came:  # while it was being started
            process.send_signal(came[0])
        code = process.wait()
    if came:
        raise Stopped(came[0])
    return code


@contextmanager
def _signals_to(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Within it Ctrl-C and SIGTERM go to the handler."""
    before = {n: signal.signal(n, handler) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


def _stop(number: int, frame: object) -> None:
    raise Stopped(number)

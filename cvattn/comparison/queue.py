"""Runs made one after the other or several at once, each a process of its own.

Each is written down as it ends. All can be stopped at any time: started again, they go on with the
runs that were interrupted, where these were. A run that fails does not keep the others from theirs.
"""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from cvattn.system.files import make_folder
from cvattn.system.machine import usable_cores

_LOOK = 0.1  # seconds between two looks at what has ended


class Stopped(Exception):
    """Ctrl-C or SIGTERM came.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass
class _Run:
    """A run that is going on.

    Attributes:
        log: what it says goes there; None: to the terminal.
        told: a signal was passed on to it.
    """

    job: Job
    folder: Path
    process: "subprocess.Popen[bytes]"
    log: Path | None
    told: bool = False

    def tell(self, number: int) -> None:
        self.told = True
        self.process.send_signal(number)


def curves_file(results: Path) -> Path:
    """Where the learning curves of the runs in ``results`` are."""
    return results.with_name(f"{results.stem}_curves.csv")


def left(jobs: Sequence[Job], results: Path) -> list[Job]:
    """Those that have no row yet."""
    done = {(row["run"], row["command"]) for row in read_rows(results)}
    return [job for job in jobs if job.key not in done]


def work(
    jobs: Sequence[Job], *, results: Path, place: Path, console: Console, at_once: int = 1
) -> list[str]:
    """Make the runs and write them down.

    Args:
        jobs: all of them are made.
        results: a CSV file, with the learning curves beside it.
        place: each run has a folder in it.
        console: for what is begun, and of several at once for what has ended.
        at_once: how many; the cores are divided among them, and what they say goes into files.

    Returns:
        What failed, a sentence for each.

    Raises:
        Stopped: by a signal. The runs that were going on have ended, and can go on.
        CannotWrite: what was there is as it was; the runs have ended as after a signal.
    """
    waiting = deque(enumerate(jobs, start=1))
    running: list[_Run] = []
    came: list[int] = []
    failed: list[str] = []

    def pass_on(number: int, frame: object) -> None:
        came.append(number)
        for run in running:
            run.tell(number)

    def begin() -> None:
        number, job = waiting.popleft()
        folder = place.absolute() / job.folder
        log = None if at_once == 1 else folder.with_name(f"{folder.name}.txt")
        where = "" if log is None else f"  > {log}"
        console.print(f"{number} of {len(jobs)}: {job.run}  {job.command}{where}", soft_wrap=True)
        if _is_done(folder):  # it may have ended just before the queue was stopped
            _write_down(job, folder, results, at_once)
            return
        running.append(_Run(job, folder, _start(job, folder, log, at_once), log))
        if came and not running[-1].told:  # while it was being started
            running[-1].tell(came[0])

    def end(run: _Run) -> None:
        running.remove(run)
        code = run.process.returncode
        if not code and _is_done(run.folder):
            _write_down(run.job, run.folder, results, at_once)
            if run.log:
                console.print(f"{run.job.run}, seed {run.job.seed}, has ended", soft_wrap=True)
        elif not came:
            why = f"exit code {code}" if code else "exit code 0 and no whole summary.json"
            at = f"its folder is {run.folder}" + (f", what it said {run.log}" if run.log else "")
            failed.append(f"{run.job.run} ended with {why}; {at}")
            console.print(failed[-1], soft_wrap=True)

    with _signals_to(pass_on):
        try:
            while running or (waiting and not came):
                while waiting and len(running) < at_once and not came:
                    begin()
                ended = [run for run in running if run.process.poll() is not None]
                for run in ended:
                    end(run)
                if running and not ended:
                    time.sleep(_LOOK)
        finally:  # after an error others may still be going on
            for run in running:
                run.tell(signal.SIGTERM)
            for run in running:
                run.process.wait()
    if came:
        raise Stopped(came[0])
    return failed


def training_command(job: Job, folder: Path) -> list[str]:
    """The command line, which also continues the run or finds it finished."""
    arguments = [*job.overrides, f"seed={job.seed}", assigned("hydra.run.dir", folder)]
    return [sys.executable, "-m", "cvattn", "train", *arguments, "resume=auto"]


def environment(at_once: int) -> Mapping[str, str]:
    """Of a run beside others: its share of the cores, and threads that sleep soon.

    What the user has set stays.
    """
    mine = {"OMP_NUM_THREADS": str(max(1, usable_cores() // at_once)), "GOMP_SPINCOUNT": "1000"}
    return {**mine, **os.environ} if at_once > 1 else os.environ


def _is_done(folder: Path) -> bool:
    return read_summary(folder / "summary.json") is not None


def _write_down(job: Job, folder: Path, results: Path, at_once: int) -> None:
    row = row_of(job, folder) | {"at_once": at_once}
    # A run is done when its row is there: what was left by a stop before is replaced.
    same = {"run": job.run, "seed": str(job.seed)}
    append(curves_file(results), CURVE_COLUMNS, epochs_of(job, folder), instead_of=same)
    append(results, COLUMNS, [row])


def _start(job: Job, folder: Path, log: Path | None, at_once: int) -> "subprocess.Popen[bytes]":
    """In a process group of its own, or the terminal's Ctrl-C would reach it twice."""
    command, variables = training_command(job, folder), environment(at_once)
    if log is None:
        return subprocess.Popen(command, process_group=0, env=variables)
    make_folder(log.parent)
    with log.open("ab") as file:
        return subprocess.Popen(
            command, process_group=0, env=variables, stdout=file, stderr=subprocess.STDOUT
        )


@contextmanager
def _signals_to(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Within it Ctrl-C and SIGTERM go to the handler."""
    before = {n: signal.signal(n, handler) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)

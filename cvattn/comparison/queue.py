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
    going_on = _Work(jobs, results, place, console, at_once)
    with _signals_to(going_on.pass_on):
        going_on.to_its_end()
    if going_on.came:
        raise Stopped(going_on.came[0])
    return going_on.failed


class _Work:
    """What :func:`work` keeps in mind.

    Attributes:
        waiting: jobs with their numbers, from 1.
        running: at most ``at_once`` of them.
        came: numbers of the signals; after one nothing is begun.
        failed: a sentence for each run.
    """

    def __init__(
        self, jobs: Sequence[Job], results: Path, place: Path, console: Console, at_once: int
    ) -> None:
        self.jobs, self.results, self.place = jobs, results, place
        self.console, self.at_once = console, at_once
        self.waiting = deque(enumerate(jobs, start=1))
        self.running: list[_Run] = []
        self.came: list[int] = []
        self.failed: list[str] = []

    def pass_on(self, number: int, frame: object) -> None:
        self.came.append(number)
        for run in self.running:
            run.tell(number)

    def to_its_end(self) -> None:
        try:
            while self.running or (self.waiting and not self.came):
                while self.waiting and len(self.running) < self.at_once and not self.came:
                    self.begin()
                ended = [run for run in self.running if run.process.poll() is not None]
                for run in ended:
                    self.end(run)
                if self.running and not ended:
                    time.sleep(_LOOK)
        finally:  # after an error others may still be going on
            for run in self.running:
                run.tell(signal.SIGTERM)
            for run in self.running:
                run.process.wait()

    def begin(self) -> None:
        number, job = self.waiting.popleft()
        folder = self.place.absolute() / job.folder
        log = None if self.at_once == 1 else folder.with_name(f"{folder.name}.txt")
        self.say(
            f"{number} of {len(self.jobs)}: {job.run}  {job.command}"
            + ("" if log is None else f"  > {log}")
        )
        if _is_done(folder):  # it may have ended just before the queue was stopped
            self.write_down(job, folder)
            return
        run = _Run(job, folder, _start(job, folder, log, self.at_once), log)
        self.running.append(run)
        if self.came and not run.told:  # while it was being started
            run.tell(self.came[0])

    def end(self, run: _Run) -> None:
        self.running.remove(run)
        code = run.process.returncode
        if not code and _is_done(run.folder):
            self.write_down(run.job, run.folder)
            if run.log:
                self.say(f"{run.job.run}, seed {run.job.seed}, has ended")
        elif not self.came:
            why = f"exit code {code}" if code else "exit code 0 and no whole summary.json"
            at = f"its folder is {run.folder}" + (f", what it said {run.log}" if run.log else "")
            self.failed.append(f"{run.job.run} ended with {why}; {at}")
            self.say(self.failed[-1])

    def write_down(self, job: Job, folder: Path) -> None:
        row = row_of(job, folder) | {"at_once": self.at_once}
        # A run is done when its row is there: what was left by a stop before is replaced.
        same = {"run": job.run, "seed": str(job.seed)}
        file = curves_file(self.results)
        append(file, CURVE_COLUMNS, epochs_of(job, folder), instead_of=same)
        append(self.results, COLUMNS, [row])

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)


def training_command(job: Job, folder: Path) -> list[str]:
    """The command line, which also continues the run or finds it finished."""
    arguments = [*job.overrides, f"seed={job.seed}", assigned("hydra.run.dir", folder)]
    return [sys.executable, "-m", "cvattn", "train", *arguments, "resume=auto"]


def environment(at_once: int, given: Mapping[str, str]) -> Mapping[str, str]:
    """Of a run beside others: its share of the cores, and threads that sleep soon (``train.py``).

    Args:
        at_once: how many runs there are; what one alone is given stays as it is.
        given: what the user has set, which stays.
    """
    if at_once == 1:
        return given
    mine = {"OMP_NUM_THREADS": str(max(1, usable_cores() // at_once))}
    if "OMP_WAIT_POLICY" not in given:
        mine["GOMP_SPINCOUNT"] = "1000"
    return {**mine, **given}


def _is_done(folder: Path) -> bool:
    return read_summary(folder / "summary.json") is not None


def _start(job: Job, folder: Path, log: Path | None, at_once: int) -> "subprocess.Popen[bytes]":
    """In a process group of its own, or the terminal's Ctrl-C would reach it twice."""
    command, variables = training_command(job, folder), environment(at_once, os.environ)
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

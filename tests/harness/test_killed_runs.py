"""A run that is killed at any moment, from its start to its exit, ends as if it never was.

At chosen moments, quickly: ``test_stopped_runs.py``.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from killing import differences, log, outcome
from runs import ROOT

BY_COMMAND_LINE = {5, 13}  # continued by a Python that imports everything itself
TWICE = {3, 7, 10, 12, 14}


def there(name):
    return lambda folder: (folder / name).exists()


def has_two_rows(folder):
    metrics = folder / "metrics.csv"
    return metrics.exists() and metrics.read_text().count("\n") == 3


# What a run does in turn, how that is seen to begin, and how many of the kills it gets. By the
# clock alone most of them would meet imports and the exit.
PHASES = [
    ("start", lambda folder: True, 2),
    ("epoch 1", there("checkpoints/last.ckpt"), 4),
    ("epoch 2", there("checkpoints/best.ckpt"), 4),
    ("test and curves.png", has_two_rows, 2),
    ("attention.png", there("curves.png"), 2),
    ("summary.json", there("attention.png"), 1),
    ("exit", there("summary.json"), 1),
]
MOMENTS = [(index, part) for index, (*_, kills) in enumerate(PHASES) for part in range(kills)]


def wait_for(index, folder, process):
    """Until the phase has begun, or the process is over."""
    with suppress(ProcessLookupError):
        while not PHASES[index][1](folder):
            os.kill(process, 0)
            time.sleep(0.0005)


@pytest.fixture(scope="module")
def seconds(runs, place, arguments, whole):
    """How long each phase takes."""
    folder, times = place / "timed", []
    process = runs.start([*arguments, "hydra.run.dir=timed"], place)
    for index in range(len(PHASES)):
        wait_for(index, folder, process)
        times.append(time.monotonic())
    assert runs.wait() == 0, log(place)
    return [after - before for before, after in pairwise([*times, time.monotonic()])]


@pytest.fixture(scope="module")
def elsewhere(place):
    """A folder on another file system than the runs', or None."""
    memory = Path("/dev/shm")
    if not (memory.is_dir() and os.access(memory, os.W_OK)):
        yield None
        return
    if memory.stat().st_dev == place.stat().st_dev:
        yield None
        return
    folder = Path(tempfile.mkdtemp(dir=memory))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(MOMENTS)))
def test_killed_at_any_moment(
    number, seed, runs, place, arguments, whole, seconds, elsewhere, record_property
):
    """Each number has a part of a phase for its own; at a random moment in that it is killed."""
    options = {}
    if number % 4 in (1, 2):
        if elsewhere is None:
            pytest.skip("no other file system here for temporary files")
        options["TMPDIR"] = str(elsewhere)
    generator = random.Random(f"{seed} {number}")
    folder = place / f"killed{number}"
    new = [*arguments, f"hydra.run.dir={folder.name}"]
    last, summary = folder / "checkpoints" / "last.ckpt", folder / "summary.json"

    def command():
        if number % 2 and last.exists():
            return [f"ckpt_path={last.relative_to(place)}"]
        return [*new, "resume=auto"]

    def kill(index, delay):
        """After ``delay`` seconds of the phase; whether there is something left to be done."""
        process = runs.start(command(), place, **options)
        wait_for(index, folder, process)
        time.sleep(delay)
        with suppress(ProcessLookupError):  # it may be over
            os.kill(process, signal.SIGKILL)
        code = runs.wait()
        assert code in (-signal.SIGKILL, 0), log(place)
        met = [name for name, begun, _ in PHASES if begun(folder)][-1]
        record_property("killed", met if code else "over before")
        return not summary.exists()

    index, part = MOMENTS[number]
    left = kill(index, (part + generator.random()) / PHASES[index][2] * seconds[index])
    if left and number in TWICE:  # then it starts and does what is left
        left = kill(0, generator.random() * (seconds[0] + sum(seconds[max(index, 1) :])))
    if not left:  # the summary is the last file of all
        pass
    elif number in BY_COMMAND_LINE:
        subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *command()],
            cwd=place,
            env={**os.environ, "CVATTN_OFFLINE": "1", "OMP_NUM_THREADS": "1", **options},
            check=True,
            capture_output=True,
        )
    else:
        assert runs.run(command(), place, **options) == 0, log(place)
    assert differences(whole, outcome(folder)) == []
    if elsewhere is not None:
        assert list(elsewhere.iterdir()) == []

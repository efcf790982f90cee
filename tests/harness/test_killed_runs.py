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
from pathlib import Path

import pytest
import torch
from killing import differences, log, outcome
from runs import ROOT

from cvattn.harness.position import position_of

TIMES = 40
BY_COMMAND_LINE = {5, 15, 25, 35}  # continued by a Python that imports everything itself
TWICE = {3, 11, 19, 22, 27, 30, 33, 36, 38, 39}


@pytest.fixture(scope="module")
def seconds(runs, place, arguments, whole):
    """How long the run takes from its start to its exit."""
    began = time.monotonic()
    assert runs.run([*arguments, "hydra.run.dir=timed"], place) == 0, log(place)
    return time.monotonic() - began


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


def reached(folder):
    """What a killed run was doing, by what it left."""
    last = folder / "checkpoints" / "last.ckpt"
    if not last.exists():
        return "before the first checkpoint"
    if (folder / "summary.json").exists():
        return "after the summary"
    if (folder / "attention.png").exists():
        return "summary"
    if (folder / "curves.png").exists():
        return "attention.png"
    position = position_of(torch.load(last, weights_only=True))
    if position.epoch < 2:
        return f"epoch {position.epoch + 1}"
    return "test, curves.png"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(TIMES))
def test_killed_at_any_moment(
    number, seed, runs, place, arguments, whole, seconds, elsewhere, record_property
):
    """Each number has its own fortieth of the run, so that tests, pictures and exit have theirs."""
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

    part = (number + generator.random()) / TIMES
    for share in (part, generator.random()) if number in TWICE else (part,):
        process = runs.start(command(), place, **options)
        time.sleep(share * seconds)
        with suppress(ProcessLookupError):  # it may be over
            os.kill(process, signal.SIGKILL)
        code = runs.wait()
        assert code in (-signal.SIGKILL, 0), log(place)
        record_property("killed", reached(folder) if code else "over before")
        if summary.exists():
            break
    if summary.exists():  # written whole, as the last file of all
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

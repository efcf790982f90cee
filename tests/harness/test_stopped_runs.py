"""One run that is killed or stopped again and again, at chosen moments: it ends as if it never was.

At random moments: ``test_killed_runs.py``.
"""

import re
import shlex
import signal

import pytest
from killing import differences, log, outcome

# 9 batches an epoch, each with a checkpoint; that of the ninth is written at the epoch's end. What
# each process of the run meets, in turn, and where the next one goes on.
KILLED = [
    ("data", 1, "training"),
    ("half:last.ckpt", 5, "in epoch 1, after its batch 4"),
    ("validation", 1, "in epoch 1, after its batch 8"),
    ("rename:best.ckpt", 1, "in epoch 1, after its batch 8"),
    ("row", 1, "after epoch 1"),  # between the checkpoint and the row of metrics.csv
    ("batch", 6, "in epoch 2, after its batch 5"),
    ("test", 1, "what is left is the test"),
    ("curves", 1, "what is left is the test"),
    ("half:attention.png", 1, "what is left is the test"),
    ("half:summary.json", 1, "what is left is the test"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "moments",
    [
        pytest.param([KILLED[1]], id="half_a_checkpoint"),
        pytest.param(KILLED, id="each", marks=pytest.mark.slow),
    ],
)
def test_killed_and_continued_by_one_command(runs, place, arguments, whole, moments):
    folder = place / f"killed{len(moments)}"
    command = [*arguments, f"hydra.run.dir={folder.name}", "resume=auto"]
    for at, count, _ in moments:
        assert runs.run(command, place, at, count=count) == -9, (at, log(place))
        assert not (folder / "summary.json").exists(), at
    (place / "log.txt").unlink()
    assert runs.run(command, place) == 0, log(place)
    assert moments[-1][2] in log(place)
    assert differences(whole, outcome(folder)) == []
    before = (folder / "summary.json").stat().st_mtime_ns
    assert runs.run(command, place) == 0
    assert "complete after 2 epochs" in log(place)
    assert (folder / "summary.json").stat().st_mtime_ns == before


STOPPED = [
    ("data", [signal.SIGINT]),
    ("batch", [signal.SIGTERM]),
    ("batch", [signal.SIGINT, signal.SIGINT]),
    ("validation", [signal.SIGTERM, signal.SIGTERM]),
    ("half:last.ckpt", [signal.SIGINT]),
    ("test", [signal.SIGTERM]),
    ("attention", [signal.SIGINT, signal.SIGINT]),
    ("summary", [signal.SIGTERM]),
]


@pytest.mark.slow
def test_ctrl_c_and_sigterm_in_every_phase(runs, place, arguments, whole):
    """An exit code, no traceback, and once the command that goes on."""
    command = [*arguments, "hydra.run.dir=stopped"]
    for at, signals in STOPPED:
        (place / "log.txt").unlink(missing_ok=True)
        code = runs.run(command, place, at, signals=signals)
        printed = log(place)
        assert code == 128 + signals[0], (at, printed)
        assert "Traceback" not in printed
        if at == "data":
            assert printed.count("nothing is saved yet") == 1
            continue
        (found,) = re.findall(r"python train\.py (.*)", printed)
        command = shlex.split(found)
    assert runs.run(command, place) == 0, log(place)
    assert differences(whole, outcome(place / "stopped")) == []

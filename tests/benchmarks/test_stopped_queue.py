"""The queue behind runs that fail and under signals, with a stand-in for training.

What is started is a process of its own that does at once what its overrides say; with real
training: ``test_run_queue.py``.
"""

import json
import os
import shlex
import signal
import sys
from pathlib import Path

import pytest
import yaml

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import queue_rows  # noqa: E402
import run_queue  # noqa: E402

# Its calls are written down; "act=stop" sends the queue a signal in its first process, and ends by
# that which it gets back.
TRAIN = """
import json, os, signal, sys, time
from pathlib import Path

said = dict(text.split("=", 1) for text in sys.argv[1:])
with open("calls.txt", "a") as file:
    file.write(json.dumps(said) + "\\n")
folder = Path(said["hydra.run.dir"].strip('"'))  # as Hydra's grammar has it
first = not folder.exists()
folder.mkdir(parents=True, exist_ok=True)
act = said.get("act")
if act == "stop" and first:
    number = int(said["number"])
    signal.signal(number, lambda *_: sys.exit(128 + number))
    os.kill(os.getppid(), number)
    time.sleep(30)
    sys.exit("the queue kept the signal for itself")
if act == "wait" and not Path("again").exists():
    time.sleep(5)
    Path("waited").touch()
if act == "killed" and first:
    os.kill(os.getpid(), signal.SIGKILL)
if act == "fail" and first:
    sys.exit(3)
if act == "nothing" and first:
    sys.exit(0)
text = Path("summary.json").read_text()
cut = act == "cut" and first
(folder / "summary.json").write_text(text[: len(text) // 2] if cut else text)
(folder / "metrics.csv").write_text("epoch,step,val/accuracy\\n0,4,0.25\\n1,9,0.5\\n")
"""

SUMMARY = {
    "data": {"label": "digits", "unit": "image", "train_on_val": False},
    "test": {"accuracy": 0.5},
    "val": {"accuracy": 0.25},
    "gamma": {},
    "earlier_commits": [],
    "commit": "1234567",
    "precision": "32-true",
    "pflop": 0.1,
    "epochs": 2,
    "parameters": 7,
    "macs_per_image": 11,
    "minutes": 1.0,
    "images_per_second": 13.0,
}


class Queue:
    """A queue in ``folder``, run in this process."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        (folder / "train.py").write_text(TRAIN)
        (folder / "summary.json").write_text(json.dumps(SUMMARY))
        patch.setattr(run_queue.machine, "ROOT", folder)

    def arguments(self, runs: dict[str, list[str]]) -> list[str]:
        file = self.folder / "list.yaml"
        named = {name: {"overrides": given, "seeds": [1]} for name, given in runs.items()}
        file.write_text(yaml.safe_dump(named, sort_keys=False))
        output = self.folder / "results" / "list.csv"
        folder = self.folder / "of runs"
        return [str(file), "--output", str(output), "--folder", str(folder)]

    def run(self, **runs: list[str]) -> int:
        self.patch.setattr(sys, "argv", ["run_queue.py", *self.arguments(runs)])
        return run_queue.main()

    def calls(self) -> list[str]:
        """The runs that were started since the last time, each one so that it may go on."""
        file = self.folder / "calls.txt"
        calls = [json.loads(line) for line in file.read_text().splitlines()]
        file.unlink()
        assert {call["resume"] for call in calls} == {"auto"}
        return [Path(call["hydra.run.dir"]).name.split("_seed")[0] for call in calls]

    def written(self) -> tuple[list[str], list[tuple[str, str]]]:
        """Of the results their runs, of the curves their runs and epochs."""
        rows = queue_rows.read_rows(self.folder / "results" / "list.csv")
        curves = queue_rows.read_rows(self.folder / "results" / "list_curves.csv")
        return [row["run"] for row in rows], [(row["run"], row["epoch"]) for row in curves]


@pytest.fixture
def queue(tmp_path, monkeypatch):
    # Nothing of ours may be left of the handlers that were there.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield Queue(tmp_path, monkeypatch)
    assert {number: signal.getsignal(number) for number in before} == before


def twice(*runs: str) -> list[tuple[str, str]]:
    return [(run, epoch) for run in runs for epoch in ("1", "2")]


FAILURES = {"fail": "exit code 3", "killed": "exit code -9"}
FAILURES |= {"nothing": "no whole summary.json", "cut": "no whole summary.json"}


def test_failed_runs_are_named_and_the_others_have_theirs(queue, capsys):
    runs = {"one": ["a=1"], **{name: [f"act={name}"] for name in FAILURES}, "last": ["a=2"]}
    assert queue.run(**runs) == 1
    assert queue.calls() == [*runs]
    assert queue.written() == (["one", "last"], twice("one", "last"))
    _, _, end = capsys.readouterr().out.partition("rows, curves, picture")
    for name, why in FAILURES.items():
        (line,) = (line for line in end.splitlines() if line.startswith(f"{name} "))
        assert why in line
        assert str(queue.folder / "of runs" / f"{name}_seed1_") in line
    # Started again: those that failed, which go on.
    assert queue.run(**runs) == 0
    assert queue.calls() == [*FAILURES]
    everything = ["one", "last", *FAILURES]
    assert queue.written() == (everything, twice(*everything))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_run(queue, capsys, number):
    """The run gets it, no other one is started, and the queue's own command is named."""
    runs = {"one": ["a=1"], "two": ["act=stop", f"number={int(number)}"], "three": ["a=3"]}
    assert queue.run(**runs) == 128 + number
    assert queue.calls() == ["one", "two"]
    assert queue.written() == (["one"], twice("one"))
    said = capsys.readouterr().out
    assert said.endswith(f"goes on with\n  {shlex.join(['python', *sys.argv])}\n")
    assert queue.run(**runs) == 0
    assert queue.calls() == ["two", "three"]
    assert queue.written() == ([*runs], twice(*runs))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["facts", "first file", "second file", "start"])
def test_a_signal_between_runs(queue, capsys, monkeypatch, number, moment):
    """A row and its curves are written once, whatever of them was there."""
    owner, name, count = {
        "facts": (run_queue.machine, "facts", 1),
        "first file": (queue_rows, "write_text", 1),
        "second file": (queue_rows, "write_text", 2),
        "start": (run_queue.subprocess, "Popen", 2),  # of the second run: it is not left alone
    }[moment]
    honest, calls = getattr(owner, name), []

    def signalled(*args, **kwargs):
        if moment == "start":
            process = honest(*args, **kwargs)
            calls.extend(["train.py"] if "train.py" in args[0] else [])  # and not git
            if len(calls) == count:
                os.kill(os.getpid(), number)
            return process
        calls.append(name)
        if len(calls) == count:
            os.kill(os.getpid(), number)
        return honest(*args, **kwargs)

    runs = {"one": ["a=1"], "two": ["act=wait" if moment == "start" else "a=2"]}
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, signalled)
        assert queue.run(**runs) == 128 + number
    assert "The queue goes on with\n  python " in capsys.readouterr().out
    assert len(calls) == count
    assert not (queue.folder / "waited").exists()
    (queue.folder / "again").touch()
    assert queue.run(**runs) == 0
    assert queue.written() == ([*runs], twice(*runs))


def test_rows_are_added_all_or_nothing(queue, capsys, monkeypatch):
    """A full disk: what was written stays, it is said, and the next time the rest is added."""
    assert queue.run(one=["a=1"]) == 0
    runs = {"one": ["a=1"], "two": ["a=2"]}

    def full(number):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert queue.run(**runs) == 1
    said = capsys.readouterr().out
    assert "No space left on device" in said
    assert "goes on with\n  python " in said
    assert queue.written() == (["one"], twice("one"))
    assert queue.run(**runs) == 0
    assert queue.written() == ([*runs], twice(*runs))

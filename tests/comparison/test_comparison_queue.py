"""The queue behind runs that fail and under signals, with a stand-in for training.

What is started is a process of its own that does at once what its overrides say; with real
training: ``tests/cli/test_compare.py``.
"""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import yaml

from cvattn.cli import compare, main
from cvattn.comparison import queue as comparison_queue
from cvattn.comparison import rows as comparison_rows
from cvattn.comparison.planned import Plan
from cvattn.comparison.rows import read_rows

# Its calls are written down; "act=stop" sends the queue a signal in its first process, and ends by
# that which it gets back.
TRAIN = """
import json, os, signal, sys, time
from pathlib import Path

said = dict(text.split("=", 1) for text in sys.argv[1:])
with open("calls.txt", "a") as file:
    file.write(json.dumps(said | {"threads": os.environ.get("OMP_NUM_THREADS")}) + "\\n")
print("said by", said.get("name"), flush=True)
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
if act == "meet":  # all of them are there before one goes on; with "held" until a signal comes
    told = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: told.append(number))
    Path("met", said["name"]).touch()
    deadline = time.monotonic() + 20
    while len(list(Path("met").iterdir())) < int(said["together"]) and time.monotonic() < deadline:
        time.sleep(0.02)
    if said["name"] == "caller" and first:
        os.kill(os.getppid(), signal.SIGTERM)
    while "held" in said and first and not told and time.monotonic() < deadline:
        time.sleep(0.02)
    if "held" in said and first:
        time.sleep(0.3)  # for a second one, which there must not be
        Path("told", said["name"]).write_text(str(told))
        sys.exit(128 + told[0])
    if time.monotonic() > deadline:
        sys.exit("alone")
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
    "criterion": {"metric": "val/accuracy", "mode": "max", "best": 0.25},
    "machine": {"processor": "Some(R) Processor", "gpu": None},
    "versions": {"torch": "2.10"},
}


class Queue:
    """A queue in ``folder``, run in this process."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        (folder / "train.py").write_text(TRAIN)
        (folder / "summary.json").write_text(json.dumps(SUMMARY))
        patch.chdir(folder)
        patch.setattr(compare, "plan", lambda job: Plan(11, 7, "image"))
        patch.setattr(comparison_queue, "training_command", self.command)

    def command(self, job, folder: Path) -> list[str]:
        arguments = [*job.overrides, f"seed={job.seed}", f"hydra.run.dir={folder}", "resume=auto"]
        return [sys.executable, str(self.folder / "train.py"), *arguments]

    def arguments(self, runs: dict[str, list[str]], seeds: list[int]) -> list[str]:
        file = self.folder / "list.yaml"
        named = {name: {"overrides": given, "seeds": seeds} for name, given in runs.items()}
        file.write_text(yaml.safe_dump(named, sort_keys=False))
        return ["compare", str(file), "-o", "results", "--folder", "of runs"]

    def run(self, *more: str, seeds: tuple[int, ...] = (1,), **runs: list[str]) -> int:
        return main([*self.arguments(runs, list(seeds)), *more])

    def calls(self) -> list[str]:
        """The runs that were started since the last time, each one so that it may go on."""
        file = self.folder / "calls.txt"
        calls = [json.loads(line) for line in file.read_text().splitlines()]
        file.unlink()
        return [Path(call["hydra.run.dir"]).name.split("_seed")[0] for call in calls]

    def written(self) -> tuple[list[str], list[tuple[str, str]]]:
        """Of the results their runs, of the curves their runs and epochs."""
        rows = read_rows(self.folder / "results" / "list.csv")
        curves = read_rows(self.folder / "results" / "list_curves.csv")
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
    _, _, end = capsys.readouterr().out.partition("Everything is in")
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
    again = f"python -m cvattn compare {queue.folder}/list.yaml -o results --folder 'of runs'"
    assert said.endswith(f"goes on with\n  {again}\n")
    assert queue.run(**runs) == 0
    assert queue.calls() == ["two", "three"]
    assert queue.written() == ([*runs], twice(*runs))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["row", "first file", "second file", "start"])
def test_a_signal_between_runs(queue, capsys, monkeypatch, number, moment):
    """A row and its curves are written once, whatever of them was there."""
    # When the signal comes, and how many calls there are: a row that was begun is finished.
    owner, name, count, most = {
        "row": (comparison_rows, "usable_cores", 1, 1),
        "first file": (comparison_rows, "write_text", 1, 2),
        "second file": (comparison_rows, "write_text", 2, 2),
        "start": (comparison_queue.subprocess, "Popen", 2, 2),
    }[moment]
    honest, calls = getattr(owner, name), []

    def signalled(*args, **kwargs):
        if moment == "start":
            process = honest(*args, **kwargs)
            calls.append(name)
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
    assert "The comparison goes on with\n  python " in capsys.readouterr().out
    assert len(calls) == most
    assert not (queue.folder / "waited").exists()  # what has been started is not left alone
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
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "goes on with\n  python " in said
    assert queue.written() == (["one"], twice("one"))
    assert queue.run(**runs) == 0
    assert queue.written() == ([*runs], twice(*runs))


def meeting(together: int, *names: str, held: bool = False) -> dict[str, list[str]]:
    more = ["held=yes"] if held else []
    given = ["act=meet", f"together={together}", *more]
    return {name: [f"name={name}", *given] for name in names}


@pytest.fixture
def places(queue):
    for name in ("met", "told"):
        (queue.folder / name).mkdir()


@pytest.mark.usefixtures("places")
def test_several_at_once(queue, capfd, monkeypatch):
    """Three are together, each with its share of the cores, and what they say is in files."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(comparison_queue, "usable_cores", lambda: 7)
    runs = meeting(3, "one", "two", "three") | {"bad": ["act=fail"], "last": ["name=last"]}
    assert queue.run("--at-once", "3", **runs) == 1
    calls = [json.loads(line) for line in (queue.folder / "calls.txt").read_text().splitlines()]
    assert [call["threads"] for call in calls] == ["2"] * 5
    done, curves = queue.written()
    assert sorted(done) == ["last", "one", "three", "two"]
    assert sorted(curves) == sorted(twice(*done))
    rows = read_rows(queue.folder / "results" / "list.csv")
    assert {row["at_once"] for row in rows} == {"3"}
    said = capfd.readouterr().out
    assert "said by" not in said
    assert "two, seed 1, has ended" in said
    for name in done:
        (log,) = (queue.folder / "of runs").glob(f"{name}_seed1_*.txt")
        assert log.read_text() == f"said by {name}\n"
        assert f"> {log}" in said
    (log,) = (queue.folder / "of runs").glob("bad_seed1_*.txt")
    assert f"what it said {log}" in said


@pytest.mark.usefixtures("places")
def test_a_signal_reaches_each_of_several_once(queue, capsys):
    runs = meeting(2, "caller", "other", held=True) | {"later": ["a=1"]}
    assert queue.run("--at-once", "2", **runs) == 128 + signal.SIGTERM
    assert sorted(queue.calls()) == ["caller", "other"]
    told = {path.name: path.read_text() for path in (queue.folder / "told").iterdir()}
    assert told == dict.fromkeys(["caller", "other"], f"[{int(signal.SIGTERM)}]")
    assert capsys.readouterr().out.endswith("--folder 'of runs' --at-once 2\n")
    assert queue.run("--at-once", "2", **runs) == 0
    assert sorted(queue.written()[0]) == ["caller", "later", "other"]


@pytest.mark.usefixtures("places")
def test_where_a_row_cannot_be_written_the_others_are_ended(queue, capsys, monkeypatch):
    runs = {"one": ["a=1"]} | meeting(1, "other", held=True)

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert queue.run("--at-once", "2", **runs) == 1
    assert "goes on with" in capsys.readouterr().err
    assert (queue.folder / "told" / "other").read_text() == f"[{int(signal.SIGTERM)}]"


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setattr(comparison_queue, "usable_cores", lambda: 7)
    share = {"OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": "1000"}
    assert comparison_queue.environment(1, {"a": "b"}) == {"a": "b"}
    assert comparison_queue.environment(2, {"a": "b"}) == {"a": "b"} | share
    assert comparison_queue.environment(9, {})["OMP_NUM_THREADS"] == "1"
    mine = {"OMP_NUM_THREADS": "5", "OMP_WAIT_POLICY": "active"}
    assert comparison_queue.environment(2, mine) == mine


def test_at_once_is_a_number_of_runs(queue, capsys):
    assert queue.run("--at-once", "0", one=["a=1"]) == 2
    assert "--at-once 0 must be at least 1" in capsys.readouterr().err


def test_a_run_that_had_ended_is_not_started_again(queue):
    """Stopped between its end and its row, or made for another comparison."""
    assert queue.run(one=["a=1"]) == 0
    assert queue.calls() == ["one"]
    (queue.folder / "results" / "list.csv").unlink()
    assert queue.run(one=["a=1"], two=["a=2"]) == 0
    assert queue.calls() == ["two"]
    assert queue.written() == (["one", "two"], twice("one", "two"))


def test_more_seeds_are_added_to_what_is_there(queue, capsys):
    runs = {"one": ["a=1"], "two": ["a=2"]}
    assert queue.run(**runs) == 0
    assert queue.calls() == ["one", "two"]
    assert queue.run(seeds=(1, 2, 3), **runs) == 0
    assert queue.calls() == ["one", "two"] * 2
    rows = read_rows(queue.folder / "results" / "list.csv")
    assert [(row["run"], row["seed"]) for row in rows] == [
        *(("one", "1"), ("two", "1"), ("one", "2"), ("two", "2"), ("one", "3"), ("two", "3"))
    ]
    capsys.readouterr()
    # With fewer seeds and other overrides: what there is is shown, what is of others is said.
    assert queue.run(one=["a=1"], two=["a=5"]) == 0
    said = capsys.readouterr().out
    assert "3 rows of results/list.csv are left out" in said
    assert [line.split()[3] for line in said.splitlines() if line.startswith("│ one ")][1:] == [
        "3"
    ] * 2
    assert "two against one: 1 seed, no interval" in said


def test_nothing_is_trained_where_a_run_cannot_be_composed(queue, capsys, monkeypatch):
    from cvattn.comparison.planned import plan

    monkeypatch.setattr(compare, "plan", plan)
    assert queue.run(one=["data=digits"], two=["data=digits", "model.widths=abc"]) == 2
    assert "error: two: model.widths='abc': expected a list of int" in capsys.readouterr().err
    assert not (queue.folder / "calls.txt").exists()

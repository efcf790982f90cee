"""``benchmarks/at_once.py``: what it makes of what it has timed."""

import csv
import importlib
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_two_runs_are_compared_with_one_that_waits_as_the_library_does(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    at_once = importlib.import_module("at_once")
    rates = dict(zip(at_once.CASES, (100.0, 84.0, 97.0, 21.0, 77.0), strict=True))
    monkeypatch.setattr(at_once, "images_per_second", lambda model, *case: rates[case])
    output = tmp_path / "rows.csv"
    words = ["at_once.py", "--models", "sagan", "--rounds", "2", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    assert at_once.main() == 0
    with output.open(newline="") as file:
        rows = {(row["waiting"], row["runs"], row["figure"]): row for row in csv.DictReader(file)}
    assert len(rows) == 10
    both = rows["train.py", "2", "of one alone"]
    assert (float(both["median"]), both["met"]) == (0.866, "yes")
    assert rows["300,000 looks", "2", "images/s"]["median"] == "21"
    assert rows["300,000 looks", "2", "of one alone"]["met"] == ""
    assert rows["share of the cores", "2", "of one alone"]["met"] == "no"
    assert rows["train.py", "1", "of one alone"]["met"] == ""


def test_what_each_of_two_runs_is_given(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    at_once = importlib.import_module("at_once")
    monkeypatch.setattr(at_once.queue, "usable_cores", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    given = [at_once.environment(*case) for case in at_once.CASES]
    told = [(each.get("GOMP_SPINCOUNT"), each.get("OMP_NUM_THREADS")) for each in given]
    assert told == [(None, None)] * 2 + [("300000", None)] * 2 + [("1000", "3")]

"""``benchmarks/at_once.py``: what it makes of what it has timed."""

import csv
import importlib
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_two_runs_are_compared_with_one_that_waits_as_the_library_does(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    at_once = importlib.import_module("at_once")
    rates = {(None, 1): 100.0, (None, 2): 84.0, ("300000", 1): 97.0, ("300000", 2): 21.0}
    monkeypatch.setattr(at_once, "images_per_second", lambda model, *key: rates[key[::-1]])
    output = tmp_path / "rows.csv"
    words = ["at_once.py", "--models", "sagan", "--rounds", "2", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    assert at_once.main() == 0
    with output.open(newline="") as file:
        rows = {(row["waiting"], row["runs"], row["figure"]): row for row in csv.DictReader(file)}
    assert len(rows) == 8
    both = rows["train.py", "2", "of one alone"]
    assert (float(both["median"]), both["met"]) == (0.866, "yes")
    assert rows["300,000 looks", "2", "images/s"]["median"] == "21"
    assert rows["300,000 looks", "2", "of one alone"]["met"] == ""

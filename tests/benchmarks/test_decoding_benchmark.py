"""``benchmarks/decoding.py`` on a tiny network: it runs, and its rows say what was compared."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "decoding.py"


@pytest.mark.slow
def test_quick_leaves_rows(tmp_path):
    output = tmp_path / "rows.csv"
    command = [sys.executable, str(SCRIPT), "--quick", "--rounds", "2", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["what"] for row in rows] == ["cached", "uncached", "step", "step"]
    assert rows[0]["met"] in ("yes", "no")
    assert float(rows[0]["speedup"]) > 0
    assert {row["rounds"] for row in rows} == {"2"}
    assert [row["lines"] for row in rows] == ["3", "3", "2", "1"]

"""``benchmarks/loading.py`` on a few photographs: it runs, and says what it should."""

import csv
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "loading.py"


@pytest.mark.slow
def test_few_photographs_leave_rows(tmp_path):
    output = tmp_path / "rows.csv"
    loaders = ["ours, mapped", "timm create_loader", "ours, shards, stream", "webdataset WebLoader"]
    command = [sys.executable, str(SCRIPT), "--count", "600", "--rounds", "1", "--only", *loaders]
    done = subprocess.run(
        [*command, "--output", str(output)], capture_output=True, text=True, timeout=540
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["images"] for row in rows} == {"600"}
    assert {row["loader"] for row in rows} == set(loaders)
    assert all(float(row["median"]) > 0 for row in rows)
    ratios = [row for row in rows if "ours :" in row["figure"]]
    assert {row["loader"] for row in ratios} == {"ours, mapped", "ours, shards, stream"}
    assert all(row["met"] in ("yes", "no", "open") for row in ratios)


@pytest.mark.slow
def test_a_loader_without_a_batch_says_how_many_photographs_it_takes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    loading = importlib.import_module("loading")
    importlib.import_module("photographs").draw_folder(tmp_path / "photographs", 31)
    loader = "torchvision ImageFolder"
    with pytest.raises(SystemExit, match=f"^{loader}, process 2 of 2: no batch.*--count 600 "):
        loading.show_epochs(loader, tmp_path / "photographs", 1, 2, None)

"""``benchmarks/vae_mid_block.py`` on small latents: it runs, and all methods agree."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("passes", ["forward", "forward+backward"])
def test_small_latents_leave_rows(tmp_path, passes):
    pytest.importorskip("diffusers", reason="pip install -e '.[peers]'")
    output = tmp_path / "rows.csv"
    script = str(ROOT / "benchmarks" / "vae_mid_block.py")
    words = ["--sides", "8", "--rounds", "2", "--output", str(output)]
    words += ["--training"] if passes == "forward+backward" else []
    done = subprocess.run(
        [sys.executable, script, *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["ours", "diffusers", "diffusers plain"]
    assert {row["shape"] for row in rows} == {"1x512x8x8"}
    assert {row["pass"] for row in rows} == {passes}
    for row in rows:
        assert float(row["median_ms"]) > 0, row["note"]
        assert float(row["apart"]) < 1e-4

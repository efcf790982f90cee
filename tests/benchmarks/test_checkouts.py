"""Two versions of the library in turn: the slower one is named, the same one is not."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASE = "quick-map-13x17-float32-forward+backward"

SLOWER = """
import time

def _slowed(forward):
    def slow(*args, **kwargs):
        until = time.process_time() + 0.02
        while time.process_time() < until:
            pass
        return forward(*args, **kwargs)
    return slow

SelfAttention2d.forward = _slowed(SelfAttention2d.forward)
"""


# Time of the processor: other tests run beside this one.
TIMED = ["--only", CASE, "--rounds", "5", "--clock", "cpu", "--threads", "1"]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "checkouts.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.slow
def test_a_slower_library_is_seen_in_either_place(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "cvattn", tmp_path / "cvattn")
    face = tmp_path / "cvattn" / "__init__.py"
    face.write_text(face.read_text() + SLOWER)
    done = run(str(tmp_path), *TIMED, "--bound", "0.5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "none above 0.5" in done.stdout
    ratio = float(done.stdout.split(f"{CASE}: ")[1].split()[0])
    assert ratio < 0.5
    done = run(str(ROOT), *TIMED, "--bound", "1e-6")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "above 1e-06" in done.stdout


@pytest.mark.slow
def test_refusals() -> None:
    done = run("no-such-commit", "--only", CASE)
    assert done.returncode == 2
    assert "no-such-commit is no commit" in done.stderr
    done = run(str(ROOT), "--only", "nothing*")
    assert done.returncode == 2
    assert "nothing*: no case has such a name" in done.stderr

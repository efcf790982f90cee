"""How the threads of a run wait for each other is said before torch reads it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TRAIN = Path(__file__).parents[2] / "train.py"
# Whoever imports torch first is shown the variables that its OpenMP will read, and ends there.
ASK = f"""
import importlib.abc, os, runpy, sys
class Ask(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT"))
            sys.stdout.flush()
            os._exit(0)
sys.meta_path.insert(0, Ask())
runpy.run_path({str(TRAIN)!r}, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, "None 1000"),
        ({"GOMP_SPINCOUNT": "7"}, "None 7"),
        ({"OMP_WAIT_POLICY": "active"}, "active None"),
    ],
    ids=["by itself", "a count of the user's", "a policy of the user's"],
)
def test_threads_do_not_spin_long(told, expected):
    own = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=own | told, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected

"""Runs of the harness, in this process or in one of their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"

# A network and a run that take a second.
TINY = [
    *("data=digits", "model=sagan", "model.widths=[4,8,5]", "trainer.precision=32-true"),
    *("trainer.accelerator=cpu", "trainer.limit_train_batches=3", "trainer.max_epochs=1"),
]


def start(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """``python train.py`` with the arguments, in ``cwd``, as a person would start it."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=cwd,
        env={**os.environ, "CVATTN_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # What a shell starts in the background ignores Ctrl-C, and so does what that starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def train(*arguments: str, cwd: Path, code: int = 0, **environment: str) -> str:
    """Run to the end, check the exit code, return what was printed."""
    process = start(*arguments, cwd=cwd, **environment)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output

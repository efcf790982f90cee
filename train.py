"""Train a network: ``python train.py model=sagan``, ``python train.py model=vit``.

Every key of conf/ can be set on the command line; ``python train.py --help`` lists the choices.
"""

import os
import signal
from pathlib import Path


def leave(number: int, frame: object) -> None:
    """On Ctrl-C and SIGTERM while modules load; ``fit`` has its own way."""
    print("\nStopped; nothing is lost: give the same command again.", flush=True)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, leave)
    # Before torch loads OpenMP. Its threads spin while they wait for each other, by default for so
    # long that two runs on one machine take the cores from each other for nothing.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from cvattn.harness.main import train

if __name__ == "__main__":
    train(Path(__file__).resolve().parent / "conf")

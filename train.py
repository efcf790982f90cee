"""Train a network: ``python train.py model=sagan``, ``python train.py model=vit``.

Every key of conf/ can be set on the command line; ``python train.py --help`` lists the choices.
"""

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

from cvattn.harness.main import train

if __name__ == "__main__":
    train(Path(__file__).resolve().parent / "conf")

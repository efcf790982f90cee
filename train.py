"""Train a network: ``python train.py model=sagan``, ``python train.py model=vit``.

Every key of conf/ can be set on the command line; ``python train.py --help`` lists the choices.
"""

import signal
import sys
from pathlib import Path


def leave(number: int, frame: object) -> None:
    """On Ctrl-C and SIGTERM while modules load; ``fit`` has its own way."""
    print("\nStopped; nothing is lost: give the same command again.", flush=True)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, leave)

import hydra
from omegaconf import DictConfig

from cvattn.harness import check_command_line, keep_freed_memory, plain_errors, run_job

CONF = Path(__file__).parent / "conf"


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> float | None:
    keep_freed_memory()
    return run_job(cfg)


if __name__ == "__main__":
    with plain_errors():
        sys.argv[1:] = check_command_line(sys.argv[1:], CONF)
    main()

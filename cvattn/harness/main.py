"""A run from the command line: what ``train.py`` and ``python -m cvattn train`` call."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from cvattn.harness import check_command_line, keep_freed_memory, plain_errors, run_job
from cvattn.harness.config.paths import CONF


def train(conf: Path = CONF) -> None:
    """Run what ``sys.argv`` asks for.

    Args:
        conf: the folder with ``config.yaml``.

    Raises:
        SystemExit: with what the user can do, if it cannot be run or was stopped.
    """
    with plain_errors():
        sys.argv[1:] = check_command_line(sys.argv[1:], conf)
    hydra.main(version_base="1.3", config_path=str(conf), config_name="config")(_run)()


def _run(cfg: DictConfig) -> float | None:
    keep_freed_memory()
    return run_job(cfg)


if __name__ == "__main__":
    train()

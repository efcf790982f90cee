"""What a figure depends on beside its configuration: machine, versions, commit."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import cvattn
from cvattn.system.machine import processor_name


def machine(device: torch.device) -> dict[str, Any]:
    """What it ran on, without names of hosts or people."""
    return {
        "system": platform.system(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "cvattn": cvattn.__version__,
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "pytorch_lightning": version("pytorch_lightning"),
    }


def commit() -> str | None:
    """The commit of the checkout that runs, with "+changes" if it differs; None outside git.

    Rows that earlier runs left in ``results/`` are no difference: no run depends on them.
    """
    if not (Path(cvattn.__file__).parents[1] / ".git").exists():
        return None  # installed from a wheel, maybe inside somebody's own repository
    try:
        found = _git("rev-parse", "HEAD")
        but = (":(top)", ":(top,exclude)results")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", *but)
    except (OSError, subprocess.SubprocessError):
        return None
    return found + ("+changes" if changed else "")


def _git(*arguments: str) -> str:
    folder = Path(cvattn.__file__).parent
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()

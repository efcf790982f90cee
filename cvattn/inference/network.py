"""The network of a checkpoint."""

import os
from pathlib import Path

from torch import nn

from cvattn.checkpoint import BUNDLED, CheckpointError, Own, load
from cvattn.inference.errors import InferenceError
from cvattn.system import did_you_mean, printable


def open_network(
    path: str | os.PathLike[str], device: str = "cpu", *, network: Own | None = None
) -> nn.Module:
    """As :func:`cvattn.load`; the message of an error fits into a line and names what is near.

    Raises:
        InferenceError: no checkpoint there, or none that can be used.
    """
    try:
        return load(path, network=network, map_location=device)
    except FileNotFoundError as error:
        raise InferenceError(f"no checkpoint at {path}{_other_checkpoints(Path(path))}") from error
    except CheckpointError as error:
        # The rest of torch's list of keys and sizes helps nobody at a command line.
        raise InferenceError(" ".join(str(error).split())[:600]) from error


def _other_checkpoints(path: Path) -> str:
    """What may have been meant: a run's folder stands for no checkpoint, and names are mistyped."""
    if path.is_dir():
        found = sorted([*path.glob("*.ckpt"), *path.glob("checkpoints/*.ckpt")])
        there = f": {', '.join(printable(str(each)) for each in found)}" if found else ""
        return f"; it is a folder{there}"
    found = sorted(path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
    known = [*(printable(str(each)) for each in found), *BUNDLED]
    return did_you_mean(printable(str(path)), known)

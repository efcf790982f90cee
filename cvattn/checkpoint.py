"""Checkpoints that open without running code, and rebuild their network alone.

A ``.ckpt`` file (``torch.load(weights_only=True)`` opens it) is a dict. Beside whatever the
training loop keeps there, it has

- ``"state_dict"``: the weights, the network's under ``network.``;
- ``"cvattn"``: ``{"format", "model", "args", "meta"}``: the class in :mod:`cvattn.models`, the
  plain arguments it was built with, and what a user needs to use it (classes, mean and std, image
  size, the run's whole configuration).

A ``.safetensors`` file has the weights as its tensors and the entry as JSON in its metadata. Small
networks that come with the package are such files, and are loaded by name.
"""

import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

import cvattn.models as models

FORMAT = 1
PREFIX = "network."
SAFE = ".safetensors"
ON_BOARD = {
    path.stem: path for path in sorted((Path(__file__).parent / "on_board").glob(f"*{SAFE}"))
}


class CheckpointError(ValueError):
    """The file is no checkpoint of ours, is damaged, or is of another model."""


def describe(network: nn.Module, args: Mapping[str, Any], meta: Mapping[str, Any]) -> dict:
    """The ``"cvattn"`` entry of a checkpoint; ``args`` and ``meta`` are plain (as in YAML)."""
    name = type(network).__name__
    if name not in models.__all__:
        raise CheckpointError(f"{name} is not one of cvattn.models: {', '.join(models.__all__)}")
    return {"format": FORMAT, "model": name, "args": dict(args), "meta": dict(meta)}


def save(
    path: str | PathLike[str],
    network: nn.Module,
    *,
    args: Mapping[str, Any],
    meta: Mapping[str, Any],
) -> None:
    """Write a checkpoint that :func:`load` opens: weights, class, arguments, meta; no training.

    The name chooses the format: ``.safetensors``, or else what ``torch.save`` writes.
    """
    entry = describe(network, args, meta)
    if Path(path).suffix == SAFE:
        from safetensors.torch import save_file

        state = {key: value.contiguous() for key, value in network.state_dict().items()}
        save_file(state, path, metadata={"cvattn": json.dumps(entry)})
        return
    state = {PREFIX + key: value for key, value in network.state_dict().items()}
    torch.save({"cvattn": entry, "state_dict": state}, path)


def read(path: str | PathLike[str], *, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """The whole checkpoint as a dict, after checking that it is one of ours.

    Args:
        path: of a file, or a name in ``ON_BOARD``.
        map_location: device of the weights.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a checkpoint, damaged, or not written by cvattn.
    """
    file = Path(path)
    if not file.is_file():
        if str(path) not in ON_BOARD:
            raise FileNotFoundError(
                f"no checkpoint at {path}; by name there are {', '.join(ON_BOARD)}"
            )
        file = ON_BOARD[str(path)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # guesses about foreign files; the error says it better
            content = (
                _read_safetensors(file, map_location)
                if file.suffix == SAFE
                else torch.load(file, map_location=map_location, weights_only=True)
            )
    except Exception as error:  # on damaged files the unpickler raises nearly anything
        raise CheckpointError(f"{path} {_diagnosis(file, error)}") from error
    ours = content.get("cvattn") if isinstance(content, dict) else None
    if not isinstance(ours, dict) or not isinstance(content.get("state_dict"), dict):
        raise CheckpointError(
            f"{path} was not written by cvattn: it has no 'cvattn' entry. Weights of other "
            "libraries come in through cvattn.weights."
        )
    if ours.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {ours.get('format')!r}, this version reads {FORMAT}"
        )
    for key in ("args", "meta"):
        if not isinstance(ours.get(key), dict):
            raise CheckpointError(f"{path} is damaged: its 'cvattn' entry has no {key!r}")
    return content


def _read_safetensors(path: Path, map_location: str | torch.device) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt", device=str(map_location)) as file:
        entry = json.loads((file.metadata() or {}).get("cvattn", "null"))
        names = file.keys()
        return {"cvattn": entry, "state_dict": {PREFIX + n: file.get_tensor(n) for n in names}}


def _diagnosis(path: str | PathLike[str], error: Exception) -> str:
    """What is wrong with a file that did not load; torch's own words advise to load it unsafely."""
    if isinstance(error, PermissionError):
        return "cannot be read: permission denied"
    with open(path, "rb") as file:
        start = file.read(4)
    if not start:
        return "is empty"
    if Path(path).suffix == SAFE:
        return f"is damaged, or no safetensors file: {error}"
    if start != b"PK\3\4":
        return "is not a checkpoint: not a file that torch.save writes"
    try:
        with zipfile.ZipFile(path) as archive:
            whole = archive.testzip() is None
    except Exception:  # zipfile, too, raises nearly anything on damage
        whole = False
    if not whole:
        return "is damaged: cut short, or changed since it was written"
    if isinstance(error, pickle.UnpicklingError):
        return "holds more than tensors and plain values; that could run code and is not loaded"
    return f"cannot be loaded: {str(error).splitlines()[0] if str(error) else type(error).__name__}"


def load(path: str | PathLike[str], *, map_location: str | torch.device = "cpu") -> nn.Module:
    """The trained network from a checkpoint, in eval mode, without Hydra or Lightning.

    Args:
        path: a ``.ckpt`` of a run (``checkpoints/last.ckpt``), a file written by :func:`save`, or
            the name of a network that comes with the package: "sagan-digits", "vit-digits".
        map_location: device of the weights.

    Returns:
        The network, with ``.meta``: a dict with "classes", "mean", "std", "image_size", "channels"
        and "config" (the run's resolved configuration). A network that answers with characters has
        "alphabet" and "max_length"; if it reads lines, "height", "mean" and "std" too.

    Raises:
        FileNotFoundError, CheckpointError: as in :func:`read`, or weights that do not fit.
    """
    content = read(path, map_location=map_location)
    ours = content["cvattn"]
    name = ours.get("model")
    if name not in models.__all__:
        raise CheckpointError(
            f"{path} holds a {name!r}; this version knows {', '.join(models.__all__)}"
        )
    try:
        network: nn.Module = getattr(models, name)(**ours["args"])
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        raise CheckpointError(f"{path}: {name} cannot be built as stored: {error}") from error
    state = {
        key.removeprefix(PREFIX): value
        for key, value in content["state_dict"].items()
        if isinstance(key, str) and key.startswith(PREFIX)
    }
    try:
        network.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: the weights do not fit {name}: {error}") from error
    network.meta = ours["meta"]
    return network.to(map_location).eval()

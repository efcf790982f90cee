"""Checkpoints that open without running code, and rebuild their network alone.

A ``.ckpt`` file (``torch.load(weights_only=True)`` opens it) is a dict. Beside whatever the
training loop keeps there, it has

- ``"state_dict"``: the weights, the network's under ``network.``;
- ``"cvattn"``: ``{"format", "model", "args", "meta"}``: the class in :mod:`cvattn.models`, or where
  a class of one's own is (``"my_net:Net"``), the plain arguments it was built with, and what a user
  needs to use it (classes, mean and std, image size, the run's whole configuration).

A ``.safetensors`` file has the weights as its tensors and the entry as JSON in its metadata, with a
digest of both. Small networks that come with the package are such files, and are loaded by name.

What is read is what was written: a file that was damaged since is refused, by
:mod:`cvattn.integrity`. Code is not imported because a file names it: a class that is not of
:mod:`cvattn.models` has to be given.
"""

import copy
import io
import json
import pickle
import warnings
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import cvattn.models as models
from cvattn.integrity import DamagedError, check_archive, digest
from cvattn.system.files import whole_file

FORMAT = 1
PREFIX = "network."
SAFE = ".safetensors"
ZIP = b"PK\3\4"  # what torch.save writes begins with
BUNDLED = {path.stem: path for path in sorted((Path(__file__).parent / "bundled").glob(f"*{SAFE}"))}


# What makes a network of one's own from the arguments in a checkpoint, or the network itself.
Own = Callable[..., nn.Module] | nn.Module


class CheckpointError(ValueError):
    """The file is no checkpoint of ours, is damaged, or is of another model."""


def describe(
    network: nn.Module,
    args: Mapping[str, Any],
    meta: Mapping[str, Any],
    *,
    made_by: str | None = None,
) -> dict:
    """The ``"cvattn"`` entry of a checkpoint; ``args`` and ``meta`` are plain (as in YAML).

    Args:
        made_by: where the class or function is that made a network of one's own,
            ``"my_net:Net"``; None: its class.
    """
    cls = type(network)
    ours = cls.__name__ in models.__all__ and cls is getattr(models, cls.__name__)
    name = cls.__name__ if ours else made_by or f"{cls.__module__}:{cls.__qualname__}"
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

    Args:
        args: that the class was built with; those of a class that is not of :mod:`cvattn.models`
            are what :func:`load` passes to the one that it is given.

    Raises:
        CannotWrite: an ``OSError``; a file that was there before is as it was.
    """
    entry = describe(network, args, meta)
    if Path(path).suffix == SAFE:
        with whole_file(Path(path)) as file:
            file.write(_safetensors(network.state_dict(), entry))
        return
    state = {PREFIX + key: value for key, value in network.state_dict().items()}
    write({"cvattn": entry, "state_dict": state}, path)


def write(content: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """What ``torch.save`` writes, whole or not at all.

    Raises:
        CannotWrite: an ``OSError``; a file that was there before is as it was.
    """
    archive = io.BytesIO()  # torch.save hides which error a full disk gave
    torch.save(content, archive)
    with whole_file(Path(path)) as file:
        file.write(archive.getbuffer())


def read(path: str | PathLike[str], *, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """The whole checkpoint as a dict, after checking that it is one of ours.

    Args:
        path: of a file, or a name in ``BUNDLED``.
        map_location: device of the weights.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a checkpoint, damaged, or not written by cvattn.
    """
    file = Path(path)
    if not file.is_file():
        if str(path) not in BUNDLED:
            raise FileNotFoundError(
                f"no checkpoint at {path}; by name there are {', '.join(BUNDLED)}"
            )
        file = BUNDLED[str(path)]
    try:
        read_file = _read_safetensors if file.suffix == SAFE else _read_archive
        content = read_file(file, map_location)
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


def _read_archive(path: Path, map_location: str | torch.device) -> Any:
    """What ``torch.save`` wrote; its form of before 2020 has no checksums and is refused."""
    with path.open("rb") as file, warnings.catch_warnings():
        if file.read(len(ZIP)) != ZIP:
            raise CheckpointError("is not a checkpoint: not a file that torch.save writes")
        check_archive(file)
        file.seek(0)  # the file that was checked, even if another takes its name meanwhile
        warnings.simplefilter("ignore")  # guesses about foreign files; the error says it better
        return torch.load(file, map_location=map_location, weights_only=True)


def _safetensors(state: Mapping[str, Tensor], entry: Mapping[str, Any]) -> bytes:
    """A tensor with two names (tied weights) is written once; the format takes no second one."""
    from safetensors.torch import save

    kept: dict[tuple, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in state.items():
        memory = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        first = kept.setdefault(memory, name) if tensor.numel() else name
        if first != name:
            tied[name] = first
    tensors = {name: _alone(tensor) for name, tensor in state.items() if name not in tied}
    texts = {"cvattn": json.dumps(entry), "tied": json.dumps(tied)}
    return save(tensors, metadata={**texts, "sha256": digest(texts, tensors)})


def _alone(tensor: Tensor) -> Tensor:
    """Contiguous, in memory that no other tensor shares: safetensors refuses the rest."""
    tensor = tensor.detach().contiguous()
    shares = tensor.untyped_storage().nbytes() != tensor.nbytes
    return tensor.clone() if shares else tensor


def _read_safetensors(path: Path, map_location: str | torch.device) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        texts = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    written = texts.pop("sha256", None)  # files of earlier versions have none
    if written is not None and written != digest(texts, tensors):
        raise DamagedError("its content does not agree with its SHA-256")
    state = {name: tensor.to(map_location) for name, tensor in tensors.items()}
    for name, first in json.loads(texts.get("tied", "{}")).items():
        state[name] = state[first]
    return {
        "cvattn": json.loads(texts.get("cvattn", "null")),
        "state_dict": {PREFIX + name: tensor for name, tensor in state.items()},
    }


def _diagnosis(path: Path, error: Exception) -> str:
    """What is wrong with a file that did not load; torch's own words advise to load it unsafely."""
    if isinstance(error, PermissionError):
        return "cannot be read: permission denied"
    if not path.stat().st_size:
        return "is empty"
    if isinstance(error, CheckpointError):
        return str(error)
    if isinstance(error, DamagedError):
        return f"is damaged: cut short, or changed since it was written; {error}"
    if path.suffix == SAFE:
        return f"is damaged, or no safetensors file: {error}"
    if isinstance(error, pickle.UnpicklingError):
        return "holds more than tensors and plain values; that could run code and is not loaded"
    return f"cannot be loaded: {str(error).splitlines()[0] if str(error) else type(error).__name__}"


def load(
    path: str | PathLike[str],
    *,
    network: Own | None = None,
    map_location: str | torch.device = "cpu",
) -> nn.Module:
    """The trained network from a checkpoint, in eval mode, without Hydra or Lightning.

    Args:
        path: a ``.ckpt`` of a run (``checkpoints/last.ckpt``), a file written by :func:`save`, or
            the name of a network that comes with the package: "sagan-digits", "vit-digits".
        network: of a network of one's own, its class, or a function that makes it: called with the
            arguments in the checkpoint. Or the network itself, as it was built for training, which
            is given the weights.
        map_location: device of the weights.

    Returns:
        The network, with ``.meta``: a dict with "classes", "mean", "std", "image_size", "channels"
        and "config" (the run's resolved configuration). A network that answers with characters has
        "alphabet" and "max_length"; if it reads lines, "height", "mean" and "std" too.

    Raises:
        FileNotFoundError, CheckpointError: as in :func:`read`, or weights that do not fit; a
            network that was given is then as it was.
    """
    content = read(path, map_location=map_location)
    ours = content["cvattn"]
    name = ours.get("model")
    made = network if isinstance(network, nn.Module) else _built(path, ours, network)
    state = {
        key.removeprefix(PREFIX): value
        for key, value in content["state_dict"].items()
        if isinstance(key, str) and key.startswith(PREFIX)
    }
    # Only what was given has weights to lose.
    before = copy.deepcopy(made.state_dict()) if made is network else {}
    try:
        made.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        made.load_state_dict(before, strict=False)
        raise CheckpointError(f"{path}: the weights do not fit {name}: {error}") from error
    made.meta = ours["meta"]
    return made.to(map_location).eval()


def _built(path: str | PathLike[str], ours: Mapping[str, Any], own: Own | None) -> nn.Module:
    """The network as it was built for training, with weights that are not trained."""
    name = ours.get("model")
    if own is None and name not in models.__all__:
        if not isinstance(name, str) or ":" not in name:
            raise CheckpointError(
                f"{path} holds a {name!r}; this version knows {', '.join(models.__all__)}"
            )
        cls = name.rpartition(":")[2]
        raise CheckpointError(
            f"{path} holds a network of one's own, {name}, and a file alone does not make its code "
            f"run: give it, with cvattn.load(path, network={cls}), or --network {name} to a command"
        )
    build: Any = getattr(models, str(name)) if own is None else own
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            # The weights drawn here are all replaced; the caller's own draws go on as before.
            made = build(**ours["args"])
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        raise CheckpointError(f"{path}: {name} cannot be built as stored: {error}") from error
    if not isinstance(made, nn.Module):
        raise CheckpointError(
            f"{path}: network= made a {type(made).__name__}; expected a torch.nn.Module, its "
            "class, or a function that returns one"
        )
    return made

"""What the commands share: errors in one line, reading arguments, the network of a checkpoint."""

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from cvattn.checkpoint import BUNDLED, CheckpointError, load
from cvattn.system import printable

CHECKPOINT_HELP = f"a .ckpt file of a run (checkpoints/last.ckpt), or {' or '.join(BUNDLED)}"


class CommandError(Exception):
    """Something that the user can fix; ``main`` shows it as one line and leaves with ``code``."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


def near(given: str, known: Iterable[str]) -> str:
    """'; did you mean a or b?', or what there is when nothing is near."""
    known = list(known)
    found = get_close_matches(given, known, n=3)
    if found:
        return f"; did you mean {' or '.join(found)}?"
    return f"; there are: {', '.join(known)}" if known else ""


def shown(name: str | os.PathLike[str]) -> str:
    """A path or a class's name that can be printed, whatever is in it."""
    return printable(os.fspath(name))


class Parser(argparse.ArgumentParser):
    """Options may stand anywhere among the arguments; mistakes are CommandErrors."""

    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message} (cvattn {self.prog.split()[-1]} --help says more)")

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        known, unknown = self.parse_known_intermixed_args(list(arguments))
        if unknown:
            options = [text for text in self._option_string_actions if text.startswith("--")]
            raise CommandError(f"unknown option {unknown[0]!r}{near(unknown[0], options)}")
        return known


@dataclass(frozen=True)
class Trained:
    """An image classifier from a checkpoint, in eval mode, and what it needs to be used.

    Attributes:
        classes: names of the first outputs.
        outputs: names of all outputs; those without a class are called "output 10", ...
        mean, std: per channel, of pixels scaled to 0..1.
        image_size: (H, W).
        config: the run's resolved configuration; empty if the checkpoint has none.
    """

    network: nn.Module
    classes: tuple[str, ...]
    outputs: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int]
    channels: int
    config: Mapping[str, Any]

    def normalise(self, pixels: np.ndarray) -> torch.Tensor:
        """uint8 (B, C, H, W) -> what the network takes."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (torch.from_numpy(pixels).float() / 255 - mean) / std


def open_network(path: str, device: str = "cpu") -> nn.Module:
    """The network of a checkpoint, with its ``meta``; CommandError where there is none."""
    try:
        return load(path, map_location=device)
    except FileNotFoundError as error:
        raise CommandError(f"no checkpoint at {path}{_other_checkpoints(Path(path))}") from error
    except CheckpointError as error:
        # The rest of torch's list of keys and sizes helps nobody at a command line.
        raise CommandError(" ".join(str(error).split())[:600]) from error


def open_classifier(path: str, device: str = "cpu") -> Trained:
    """The classifier of a checkpoint; CommandError where it cannot be used as one."""
    return as_classifier(open_network(path, device), path, device)


def as_classifier(network: nn.Module, path: str, device: str = "cpu") -> Trained:
    """A network as a classifier; CommandError where it cannot be used as one."""
    meta, kind = network.meta, type(network).__name__
    assert isinstance(meta, dict)
    try:
        height, width = meta["image_size"]
        trained = Trained(
            network,
            tuple(str(name) for name in meta["classes"]),
            (),
            tuple(float(value) for value in meta["mean"]),
            tuple(float(value) for value in meta["std"]),
            (int(height), int(width)),
            int(meta["channels"]),
            meta.get("config") or {},
        )
    except KeyError as error:
        raise CommandError(
            f"{path} holds a {kind} and does not say its {error.args[0]}: it was not saved as an "
            "image classifier"
        ) from error
    except (TypeError, ValueError) as error:
        raise CommandError(f"{path}: its description cannot be used: {error}") from error
    if not len(trained.mean) == len(trained.std) == trained.channels or 0 in trained.std:
        raise CommandError(
            f"{path}: {trained.channels} channels with mean {trained.mean} and std {trained.std}"
        )
    return _with_all_outputs(trained, path, device)


def _with_all_outputs(trained: Trained, path: str, device: str) -> Trained:
    example = torch.zeros(1, trained.channels, *trained.image_size, device=device)
    try:
        with torch.inference_mode():
            outputs = trained.network(example).shape[1]
    except (TypeError, ValueError, RuntimeError) as error:
        raise CommandError(f"{path}: the network does not take its own images: {error}") from error
    names = trained.classes
    if outputs < len(names):
        raise CommandError(f"{path}: {len(names)} classes, but the network has {outputs} outputs")
    names += tuple(f"output {index}" for index in range(len(names), outputs))
    return replace(trained, outputs=names)


def _other_checkpoints(path: Path) -> str:
    """What may have been meant: a run's folder stands for no checkpoint, and names are mistyped."""
    if path.is_dir():
        found = sorted([*path.glob("*.ckpt"), *path.glob("checkpoints/*.ckpt")])
        there = f": {', '.join(map(shown, found))}" if found else ""
        return f"; it is a folder{there}"
    found = sorted(path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
    return near(shown(path), [*map(shown, found), *BUNDLED])

"""The list of runs that run_queue.py works through."""

import hashlib
import shlex
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml


class ListError(ValueError):
    """The file is not there, or is no list of runs."""


@dataclass(frozen=True)
class Job:
    """One training run: its name in the file, its overrides and its seed."""

    run: str
    overrides: tuple[str, ...]
    seed: int

    @property
    def command(self) -> str:
        return shlex.join(["python", "train.py", *self.overrides, f"seed={self.seed}"])

    @property
    def key(self) -> tuple[str, str]:
        return self.run, self.command

    @property
    def folder(self) -> str:
        """Another one for other overrides: what is continued is what was asked for."""
        return f"{self.run}_seed{self.seed}_{hashlib.sha1(self.command.encode()).hexdigest()[:7]}"


def read_jobs(path: Path) -> list[Job]:
    """The runs of the file: each with its first seed, then each with its second, and so on.

    Raises:
        ListError: as it says.
    """
    try:
        named = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ListError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(named, dict) or not named:
        raise ListError(f"{path}: expected names of runs, each with overrides and seeds")
    for name, entry in named.items():
        _check(f"{path}: {name}", entry)
    rounds = zip_longest(*(entry["seeds"] for entry in named.values()))
    return [
        Job(str(name), tuple(entry["overrides"]), seed)
        for seeds in rounds
        for (name, entry), seed in zip(named.items(), seeds, strict=True)
        if seed is not None
    ]


def _check(where: str, entry: Any) -> None:
    given = sorted(entry) if isinstance(entry, dict) else entry
    if given != ["overrides", "seeds"]:
        raise ListError(f"{where} has {given}, expected overrides and seeds")
    for key, kind in (("overrides", str), ("seeds", int)):
        values = entry[key]
        if not isinstance(values, list) or not all(type(each) is kind for each in values):
            raise ListError(f"{where}.{key} is {values!r}, expected a list of {kind.__name__}")
    if not entry["seeds"] or len(set(entry["seeds"])) < len(entry["seeds"]):
        raise ListError(f"{where}.seeds is {entry['seeds']}, expected different ones, one at least")

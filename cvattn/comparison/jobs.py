"""The runs of a comparison, and the lists in YAML files that name them."""

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

import cvattn
from cvattn.harness import ConfigError

_IN_A_CHECKOUT = (Path(cvattn.__file__).parents[1] / "train.py").is_file()
_PROGRAM = ("python", "train.py") if _IN_A_CHECKOUT else ("python", "-m", "cvattn", "train")


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        run: a name that all its seeds share.
        overrides: of the command line.
        seed: of this one.
    """

    run: str
    overrides: tuple[str, ...]
    seed: int

    @property
    def command(self) -> str:
        """What to paste into a shell for the same run."""
        return shlex.join([*_PROGRAM, *self.overrides, f"seed={self.seed}"])

    @property
    def key(self) -> tuple[str, str]:
        """What its row is known by."""
        return self.run, self.command

    @property
    def folder(self) -> str:
        """Another one for other overrides: what is continued is what was asked for."""
        name = re.sub(r"[^\w.=,+-]+", "_", self.run)
        return f"{name}_seed{self.seed}_{hashlib.sha1(self.command.encode()).hexdigest()[:7]}"


def jobs_of(runs: Mapping[str, tuple[Sequence[str], Sequence[int]]]) -> list[Job]:
    """Each run with its first seed, then each with its second, and so on.

    Args:
        runs: by name, their overrides and seeds.
    """
    rounds = zip_longest(*(seeds for _, seeds in runs.values()))
    return [
        Job(name, tuple(overrides), seed)
        for seeds in rounds
        for (name, (overrides, _)), seed in zip(runs.items(), seeds, strict=True)
        if seed is not None
    ]


def read_jobs(path: Path) -> list[Job]:
    """The runs of a YAML file that names each, with its ``overrides`` and its ``seeds``.

    Raises:
        ConfigError: the file is not there, or is no list of runs.
    """
    try:
        named = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(named, dict) or not named:
        raise ConfigError(f"{path}: expected names of runs, each with overrides and seeds")
    for name, entry in named.items():
        _check(f"{path}: {name}", entry)
    return jobs_of({str(n): (entry["overrides"], entry["seeds"]) for n, entry in named.items()})


def _check(where: str, entry: Any) -> None:
    given = sorted(entry) if isinstance(entry, dict) else entry
    if given != ["overrides", "seeds"]:
        raise ConfigError(f"{where} has {given}, expected overrides and seeds")
    for key, kind in (("overrides", str), ("seeds", int)):
        values = entry[key]
        if not isinstance(values, list) or not all(type(each) is kind for each in values):
            raise ConfigError(f"{where}.{key} is {values!r}, expected a list of {kind.__name__}")
    if not entry["seeds"] or len(set(entry["seeds"])) < len(entry["seeds"]):
        raise ConfigError(
            f"{where}.seeds is {entry['seeds']}, expected different ones, one at least"
        )

"""Errors that the user can fix: shown as a message, without a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from cvattn.system.files import CannotWrite


class ConfigError(ValueError):
    """The configuration or command line cannot be run; raised before any data is loaded."""


class RunIsFinished(ConfigError):
    """The run that is to be continued has nothing left to do.

    Attributes:
        summary: of it.
    """

    def __init__(self, message: str, summary: dict[str, Any]) -> None:
        super().__init__(message)
        self.summary = summary


class TrainingStopped(RuntimeError):
    """Training ended early for a reason that the message names; what was saved is kept."""


# What ends a run early with a message and no traceback.
STOPPED = (TrainingStopped, CannotWrite)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """'; did you mean a, b?' with near matches, or the whole list when there is none."""
    known = list(known)
    # The right key in the wrong place: recipe.lr for recipe.optimizer.lr.
    leaf = given.rpartition(".")[2]
    near = [name for name in known if "." in name and name.rpartition(".")[2] == leaf]
    near = near[:3] or get_close_matches(given, known, n=3, cutoff=0.6)
    if near:
        return f"; did you mean {', '.join(near)}?"
    return f"; there are: {', '.join(sorted(known))}" if known else ""

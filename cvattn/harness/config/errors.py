"""Errors that the user can fix: shown as a message, without a traceback."""

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

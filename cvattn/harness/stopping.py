"""Ctrl-C and SIGTERM, in whatever a run is doing: an exit code, and how to go on."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from cvattn.harness.config.errors import STOPPED
from cvattn.harness.config.paths import continue_command

# A key that is pressed twice in this time (in seconds) was meant once.
_ONE_PRESS = 2.0


class Stopping(pl.Callback):
    """Turns the signals into ``SystemExit``, which everything lets through.

    The first one stops the run where it is: what is on the disk is whole, and the rest is done
    again. Only SIGTERM within the training loop waits for the end of the batch, where Lightning
    stops and ``LastCheckpoint`` saves. Another one ends the process at once.

    Attributes:
        number: of the signal that came; None if none did.
    """

    def __init__(self, folder: Path, again: str | None = None) -> None:
        self.folder = folder
        self.again = again
        self.number: int | None = None
        self._training = False
        self._came = 0.0
        self._told = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._training = True

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._training = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._training = not trainer.sanity_checking
        self.check()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._training = False
        self.check()

    def receive(self, number: int, frame: Any) -> None:
        """The signal handler."""
        if self.number is None:
            self.number, self._came = number, time.monotonic()
        elif time.monotonic() - self._came < _ONE_PRESS:
            return
        else:
            self.tell()
            os._exit(128 + self.number)
        if number == signal.SIGINT or not self._training:
            self.check()

    def check(self) -> None:
        """Leave if a signal came."""
        if self.number is not None:
            raise SystemExit(128 + self.number)

    def tell(self) -> None:
        """Say once, from the first process, how to go on."""
        if self._told or os.environ.get("LOCAL_RANK", "0") != "0":
            return
        self._told = True
        with suppress(RuntimeError):  # the signal came while something was printed
            print(f"\n{how_to_continue(self.folder, self.again)}", flush=True)


@contextmanager
def stoppable(folder: Path, again: str | None = None) -> Iterator[Stopping]:
    """Within it Ctrl-C and SIGTERM end the program with 130 and 143 and the way to go on.

    Args:
        folder: of the run.
        again: how it is continued; None: by ``train.py``.

    Raises:
        SystemExit: 128 + the signal's number.
    """
    stopping = Stopping(folder, again)
    handled = []
    if threading.current_thread() is threading.main_thread():
        # What a shell starts in the background ignores Ctrl-C.
        numbers = (signal.SIGINT, signal.SIGTERM)
        handled = [(n, signal.getsignal(n)) for n in numbers]
        handled = [(n, before) for n, before in handled if before != signal.SIG_IGN]
    for number, _ in handled:
        signal.signal(number, stopping.receive)
    try:
        yield stopping
        stopping.check()
    except BaseException as error:
        # Whatever else broke while a signal made everything stop.
        if stopping.number is None and not isinstance(error, STOPPED):
            raise
        stopping.tell()
        if stopping.number is None:
            raise
        raise SystemExit(128 + stopping.number) from None
    finally:
        for number, before in handled:
            signal.signal(number, before)


def how_to_continue(folder: Path, again: str | None = None) -> str:
    """What continues the run, or why there is nothing yet."""
    last = folder / "checkpoints" / "last.ckpt"
    if not last.exists():
        return "Stopped before the first checkpoint: nothing is saved yet. Start it again."
    return (
        f"Stopped. What last.ckpt has is kept; continue with\n  {again or continue_command(last)}"
    )

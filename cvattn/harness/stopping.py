"""Ctrl-C, SIGTERM and a queue's notice, whatever a run is doing: an exit code, how to go on."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import distributed

from cvattn.harness.config.errors import STOPPED
from cvattn.harness.config.launchers import is_first
from cvattn.harness.config.paths import continue_command

# A key that is pressed twice in this time (in seconds) was meant once.
_ONE_PRESS = 2.0
# What a queue sends some time before it ends a job: SLURM with --signal=USR1@120, submitit USR2.
_NOTICES = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
# On a GPU, whose values are waited for, processes ask each other after so many batches.
_ASK_EVERY = 10


class Stopping(pl.Callback):
    """Turns the signals into ``SystemExit``, which everything lets through.

    The first one stops the run where it is: what is on the disk is whole, and the rest is done
    again. But SIGTERM within the training loop waits for the end of the batch, and a notice
    (SIGUSR1, SIGUSR2) anywhere in the training for the end of a batch or an epoch: there
    ``LastCheckpoint`` saves, and the run leaves. Another signal ends the process at once.

    Of several processes any may get the signal; they leave together, after the same batch.
    Lightning's own handler asks the others from within the signal, in whatever they are doing.

    Attributes:
        number: of the signal that came; None if none did.
    """

    def __init__(self, folder: Path, again: str | None = None) -> None:
        self.folder = folder
        self.again = again
        self.number: int | None = None
        self._trainer: pl.Trainer | None = None
        self._fitting = self._training = False
        self._came = 0.0
        self._told = False

    def watch(self, trainer: pl.Trainer) -> None:
        """From now on, processes that the trainer starts are told of the signals, too."""
        self._trainer = trainer

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._fitting = self._training = True
        if signal.getsignal(signal.SIGTERM) != signal.SIG_IGN and _is_main_thread():
            signal.signal(signal.SIGTERM, self.receive)  # in the place of Lightning's
        # It has every process wait for the first one at each batch, for the same.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        # Between two steps of the optimiser nothing is saved.
        if not trainer.fit_loop._should_accumulate():
            self._leave_together(trainer, batch_idx)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._leave_together(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._training = False
        # The batch before it has been saved, if it was not the last one of all.
        saved = trainer.received_sigterm and not trainer.should_stop
        if saved or (self.number == signal.SIGTERM and not trainer.received_sigterm):
            self.check()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._training = self._fitting and not trainer.sanity_checking

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._fitting = self._training = False
        self.check()

    def receive(self, number: int, frame: Any) -> None:
        """The signal handler."""
        if self._trainer is not None and self._trainer.strategy.launcher is not None:
            self._trainer.strategy.launcher.kill(number)
        if self.number is None:
            self.number, self._came = number, time.monotonic()
        elif time.monotonic() - self._came < _ONE_PRESS:
            return
        else:
            self.tell()
            os._exit(128 + self.number)
        waits = self._fitting if number in _NOTICES else self._training
        if number == signal.SIGINT or not waits:
            self.check()

    def _leave_together(self, trainer: pl.Trainer, batch_idx: int = 0) -> None:
        """Have Lightning end the training here, in every process, if any of them was told to."""
        if trainer.world_size > 1:
            device = trainer.strategy.root_device
            if device.type != "cpu" and batch_idx % _ASK_EVERY:
                return
            asked = torch.tensor(self.number or 0, device=device)
            distributed.all_reduce(asked, distributed.ReduceOp.MAX)
            # One that came while they asked waits: the others do not know of it yet, and whoever
            # left alone would have them wait for it in the next step.
            if not (told := int(asked)):
                return
            if self.number is None:  # its own copy may be on its way
                self._came = time.monotonic()
            self.number = told
        if self.number is not None:
            trainer._signal_connector.received_sigterm = True

    def check(self) -> None:
        """Leave if a signal came."""
        if self.number is not None:
            raise SystemExit(128 + self.number)

    def tell(self) -> None:
        """Say once, from the first process, how to go on."""
        if self._told or not is_first():
            return
        self._told = True
        with suppress(RuntimeError):  # the signal came while something was printed
            print(f"\n{how_to_continue(self.folder, self.again)}", flush=True)


@contextmanager
def stoppable(folder: Path, again: str | None = None) -> Iterator[Stopping]:
    """Within it signals end the program with 128 and their number, and the way to go on.

    Whoever waited for a notice before (submitit, which puts the job back into the queue) gets it
    when all is saved.

    Args:
        folder: of the run.
        again: how it is continued; None: by ``train.py``.

    Raises:
        SystemExit: 128 + the signal's number.
    """
    stopping = Stopping(folder, again)
    handled: dict[int, Any] = {}
    if _is_main_thread():
        # What a shell starts in the background ignores Ctrl-C.
        numbers = (signal.SIGINT, signal.SIGTERM, *_NOTICES)
        found = {number: signal.getsignal(number) for number in numbers}
        handled = {n: before for n, before in found.items() if before != signal.SIG_IGN}
    for number in handled:
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
        before = handled.get(stopping.number)
        if stopping.number in _NOTICES and callable(before):
            before(stopping.number, None)
        raise SystemExit(128 + stopping.number) from None
    finally:
        for number, before in handled.items():
            signal.signal(number, before)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def how_to_continue(folder: Path, again: str | None = None) -> str:
    """What continues the run, or why there is nothing yet."""
    last = folder / "checkpoints" / "last.ckpt"
    if not last.exists():
        return "Stopped before the first checkpoint: nothing is saved yet. Start it again."
    return (
        f"Stopped. What last.ckpt has is kept; continue with\n  {again or continue_command(last)}"
    )

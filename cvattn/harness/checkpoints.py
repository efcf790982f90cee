"""Writing checkpoints: whole, the best so far, and the last, also by time."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins import TorchCheckpointIO

from cvattn.checkpoint import read, write
from cvattn.harness.stopping import Stopping
from cvattn.system.files import make_folder

# With several processes the first one's clock decides, which the others have to be told.
_ASK_EVERY = 10


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its target and renames it.

    Lightning's own goes through the temporary folder; from another file system the file is then
    copied onto the good one, which a kill or a full disk leaves cut short.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """As in Lightning.

        Raises:
            CannotWrite: the file that was there before is as it was.
        """
        if storage_options is not None:
            raise TypeError(f"storage_options={storage_options!r}: checkpoints are local files")
        make_folder(Path(path).parent)
        write(checkpoint, path)

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The state to go on from, of a file that is as it was written; no code in it runs.

        Raises:
            CheckpointError: as in :func:`cvattn.checkpoint.read`.
        """
        return read(path, map_location=map_location)


class BestCheckpoint(ModelCheckpoint):
    """A ``ModelCheckpoint`` for epochs of which not each one is validated."""

    def _should_skip_saving_checkpoint(self, trainer: pl.Trainer) -> bool:
        unknown = self.monitor is not None and self.monitor not in trainer.callback_metrics
        return unknown or super()._should_skip_saving_checkpoint(trainer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.current_score = state_dict["current_score"]  # Lightning saves it and forgets it


class LastCheckpoint(ModelCheckpoint):
    """Saves at an epoch's end, within epochs by time, and where a signal ends the run; one file.

    Within an epoch it saves between two steps of the optimiser.

    Args:
        dirpath: the folder.
        filename: without suffix.
        every_minutes: at most so much of training is lost when it is killed within an epoch; None:
            up to an epoch.
    """

    def __init__(
        self, dirpath: str, filename: str = "last", every_minutes: float | None = 10.0
    ) -> None:
        if every_minutes is not None and not every_minutes >= 0:
            raise ValueError(f"every_minutes={every_minutes} must be positive, or null")
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            save_top_k=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self.every_minutes = every_minutes
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        # The end of an epoch comes with a checkpoint of its own, if it comes.
        ends = trainer.should_stop or (trainer.is_last_batch and not _is_told_to_leave(trainer))
        if ends or trainer.fit_loop._should_accumulate() or not self._is_due(trainer, batch_idx):
            return
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self._saved_at = time.monotonic()

    def _is_due(self, trainer: pl.Trainer, batch_idx: int) -> bool:
        if _is_told_to_leave(trainer):
            return True
        late = (
            self.every_minutes is not None
            and time.monotonic() - self._saved_at >= 60 * self.every_minutes
        )
        if trainer.world_size == 1:
            return late
        return batch_idx % _ASK_EVERY == 0 and bool(trainer.strategy.broadcast(late))


def _is_told_to_leave(trainer: pl.Trainer) -> bool:
    """By a signal of which all processes know; Lightning's own word reaches them at other times."""
    together = any(isinstance(callback, Stopping) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    return trainer.received_sigterm and (together or trainer.world_size == 1)

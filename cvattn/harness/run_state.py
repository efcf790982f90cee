"""What makes a continued run equal to one that was never stopped."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from cvattn.harness.config.errors import ConfigError
from cvattn.harness.position import Position, align, position_of, rewrite_loops
from cvattn.harness.reporting.csv_log import CSVLog
from cvattn.tasks import NetworkTask


class RunState(pl.Callback):
    """Carries in every checkpoint, under ``"run"``, what Lightning does not, and puts it back.

    That are the figures of the epoch so far, the rows of ``metrics.csv`` with the one that is about
    to be written, whether training is over, gradients that are being accumulated, and how many
    batches the epoch has. Where the run goes on is :mod:`cvattn.harness.position`'s to say.

    Args:
        finished: the run that is continued has nothing left to be trained: ``fit`` restores it.
    """

    def __init__(self, *, finished: bool = False) -> None:
        self.finished = finished
        self._position: Position | None = None
        self._saved: dict[str, Any] = {}
        self._weights: dict[str, Any] = {}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        position = position_of(checkpoint)
        rows = {e: dict(row) for log in _csv_logs(trainer) for e, row in log.rows.items()}
        if position.closed and rows:
            # The logger gets them after the checkpoint is written.
            epoch, loop = trainer.current_epoch, trainer.fit_loop.epoch_loop
            figures = trainer._logger_connector.metrics["log"]
            row = rows.setdefault(epoch, {"epoch": epoch})
            row |= {"step": loop._batches_that_stepped - 1}
            row |= {key: float(value) for key, value in figures.items()}
        checkpoint["run"] = {
            "metrics": {k: v.detach().cpu() for k, v in trainer.callback_metrics.items()},
            "rows": rows,
            "over": trainer.should_stop,
            "batches": trainer.num_training_batches,
            "gradients": {
                name: parameter.grad.cpu()
                for name, parameter in pl_module.named_parameters()
                if not position.closed
                and parameter.grad is not None
                and trainer.fit_loop._should_accumulate()
            },
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._position = position_of(checkpoint)
        self._saved = checkpoint.get("run", {})
        rewrite_loops(checkpoint, self._position, finished=self.finished)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                follow_the_folder(checkpoint["callbacks"].get(callback.state_key), callback)
        if self.finished:
            self._weights = checkpoint["state_dict"]  # the averaged ones, if there are any
        for log in _csv_logs(trainer):
            if "rows" in self._saved:
                log.rows = {epoch: dict(row) for epoch, row in self._saved["rows"].items()}
            else:
                log.forget_from(self._position.epoch)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.finished
        trainer._logger_connector._callback_metrics.update(self._saved.get("metrics", {}))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._position is None:
            return
        self._check(trainer)
        align(trainer, self._position)
        for log in _csv_logs(trainer):
            log.save()
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback._every_n_train_steps:
                # Or it saves again, between two steps of accumulated gradients.
                callback._last_global_step_saved = trainer.global_step
        parameters = dict(pl_module.named_parameters())
        for name, gradient in self._saved.get("gradients", {}).items():
            parameters[name].grad = gradient.to(parameters[name].device)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # What an epoch does not measure is not shown as its own.
        trainer._logger_connector.reset_metrics()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(pl_module, NetworkTask):
            pl_module.log_means()  # before those who show them

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.finished:
            pl_module.load_state_dict(self._weights)
            for log in _csv_logs(trainer):
                log.save()

    def _check(self, trainer: pl.Trainer) -> None:
        position, batches = self._position, self._saved.get("batches")
        if position is None or not position.batch:
            return
        if batches not in (None, trainer.num_training_batches):
            raise ConfigError(
                f"the checkpoint was saved {position.words} of {batches}, and an epoch now has "
                f"{trainer.num_training_batches} batches: leave recipe.batch_size, "
                "trainer.limit_train_batches and the data as they were until the epoch is over"
            )
        if self._saved.get("gradients") and trainer.world_size > 1:
            raise ConfigError(
                f"the checkpoint was saved {position.words}, between two steps of "
                "trainer.accumulate_grad_batches, with the gradients of one process only: continue "
                "from checkpoints/last.ckpt"
            )


def follow_the_folder(state: dict[str, Any] | None, callback: ModelCheckpoint) -> None:
    """Name in a checkpoint callback's saved state the files of a run that was moved or copied.

    Otherwise Lightning forgets which epoch was the best so far.
    """
    if not state or state["dirpath"] == callback.dirpath or callback.dirpath is None:
        return
    before, now = Path(state["dirpath"]), Path(callback.dirpath)

    def moved(path: str) -> str:
        file = Path(path)
        return str(now / file.relative_to(before)) if file.is_relative_to(before) else path

    paths = {key: moved(state[key]) for key in state if key.endswith("_path") and state[key]}
    if not all(Path(path).exists() for path in paths.values()):
        return  # another folder was chosen; the files are not in it
    state |= paths
    state["best_k_models"] = {moved(path): score for path, score in state["best_k_models"].items()}
    state["dirpath"] = callback.dirpath


def _csv_logs(trainer: pl.Trainer) -> list[CSVLog]:
    return [logger for logger in trainer.loggers if isinstance(logger, CSVLog)]

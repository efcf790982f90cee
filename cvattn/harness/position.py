"""Where in a training a checkpoint was written, and how Lightning is told to go on exactly there.

Lightning restores the counters of its loops as they were in the middle of whatever was happening,
and from some of them it skips a batch, a validation or an end of an epoch. Here they are read for
what has been done, and rewritten as those from which it does the rest and nothing else. Studied in
pytorch-lightning 2.6.6: ``loops/fit_loop.py`` and ``loops/training_epoch_loop.py``.
"""

from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl


@dataclass(frozen=True)
class Position:
    """What is behind a checkpoint.

    Attributes:
        epoch: whole epochs, with their validation.
        batch: training batches of the epoch after them.
        validated: whether the validation that is due after that batch, if one is, has been done.
        closed: whether an epoch ended there; if ``batch`` is not 0, it was cut short
            (``trainer.max_steps``).
    """

    epoch: int
    batch: int
    validated: bool
    closed: bool

    @property
    def words(self) -> str:
        """For people, who count from 1."""
        if not self.batch:
            return f"after epoch {self.epoch}"
        return f"in epoch {self.epoch + 1}, after its batch {self.batch}"


def position_of(saved: dict[str, Any]) -> Position:
    """Of the content of a checkpoint."""
    loops = saved["loops"]["fit_loop"]
    epochs, batches = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]
    batch = batches["current"]["processed"]
    # Checkpoints are saved in hooks. An epoch counts as processed before those at its end, and as
    # completed after them; so does a batch, and the validation after it comes later.
    closed = epochs["processed"] == epochs["started"]
    if closed and (batches["is_last_batch"] or not batch):
        return Position(epochs["processed"], 0, validated=True, closed=True)
    validated = batches["current"]["completed"] == batch
    return Position(epochs["processed"] - int(closed), batch, validated, closed)


def rewrite_loops(saved: dict[str, Any], position: Position, *, finished: bool) -> None:
    """Make the counters in the content of a checkpoint those that lead on from ``position``.

    Args:
        saved: changed in place.
        position: of ``saved``.
        finished: nothing is left to be trained: all that was begun counts as completed.
    """
    loops = saved["loops"]["fit_loop"]
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    if finished:
        for progress in (epochs["total"], epochs["current"]):
            progress.update(dict.fromkeys(progress, epochs["current"]["processed"]))
        return
    begun = int(position.batch > 0)
    for progress in (epochs["total"], epochs["current"]):
        progress.update(dict.fromkeys(progress, position.epoch))
        progress["ready"] = progress["started"] = position.epoch + begun
    batches["current"] = dict.fromkeys(batches["current"], position.batch)
    batches["total"] = dict.fromkeys(batches["total"], batches["total"]["processed"])
    batches["is_last_batch"] = begun and batches["is_last_batch"]
    # A validation that is due is run from its beginning if it looks interrupted, else left out.
    validation = loops["epoch_loop.val_loop.batch_progress"]
    for key in ("total", "current"):
        validation[key] = dict.fromkeys(validation[key], 0)
        if not position.validated:
            validation[key] |= {"ready": 1, "started": 1}


def align(trainer: pl.Trainer, position: Position) -> None:
    """What the rewritten counters leave open, in ``on_train_start``."""
    loop = trainer.fit_loop.epoch_loop
    if not position.batch:
        loop.restarting = False  # with trainer.max_steps Lightning restarts what is over, too
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    # Where a validation is due, the step before it is counted after it.
    stepped = position.batch > 0 and not loop._should_accumulate()
    due = stepped and loop._should_check_val_fx(fetcher)
    loop._batches_that_stepped = trainer.global_step - int(due)

"""What a plain ``pl.Trainer`` needs for runs that go on exactly."""

from os import PathLike

import pytorch_lightning as pl

from cvattn.harness.callbacks import ReseedEachBatch, SavedContents
from cvattn.harness.checkpoints import LastCheckpoint
from cvattn.harness.run_state import RunState


def resumable(folder: str | PathLike[str], *, seed: int = 0) -> list[pl.Callback]:
    """Callbacks for a plain ``pl.Trainer`` with a data module of ours.

    ``FOLDER/last.ckpt`` is written after each epoch, and within one every ten minutes; with
    ``trainer.fit(task, data, ckpt_path="FOLDER/last.ckpt")`` the run goes on from it bit for bit.
    It opens with ``cvattn.load(path, network=...)`` and in the commands.

    Args:
        folder: of the checkpoint.
        seed: of what is random in training beside the data.
    """
    last = LastCheckpoint(str(folder))
    return [RunState(), ReseedEachBatch(seed), SavedContents(), last]

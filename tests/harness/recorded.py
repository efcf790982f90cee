"""``train.py``, which also writes down what each process trains on.

``CVATTN_NOTES`` names a folder. In it ``RANK.jsonl`` gets a line for each training step: epoch,
batch, the positions of the samples in the training set, and the loss; ``weights0.pt`` and
``weights3.pt`` are the network's weights after so many steps. ``CVATTN_SLOW`` is a number of
seconds that each step takes longer.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from cvattn.data.loader import BatchLoader
from cvattn.tasks import ClassificationTask


def record(folder: Path) -> None:
    """From now on, in this process."""
    folder.mkdir(parents=True, exist_ok=True)
    # What images in memory, mapped ones and streamed ones all come through.
    finished, step = BatchLoader._finished, ClassificationTask.training_step
    slow = float(os.environ.get("CVATTN_SLOW", "0"))

    def named(self: BatchLoader, given: torch.Tensor, index: torch.Tensor, epoch: int) -> Any:
        images, labels = finished(self, given, index, epoch)
        labels.positions = index.tolist()  # type: ignore[attr-defined]
        return images, labels

    def noted(self: ClassificationTask, given: Any, batch_idx: int) -> torch.Tensor:
        time.sleep(slow)
        steps, rank = self.trainer.global_step, self.trainer.global_rank
        if rank == 0 and steps in (0, 3):
            torch.save(self.network.state_dict(), folder / f"weights{steps}.pt")
        loss = step(self, given, batch_idx)
        note = {
            "epoch": self.trainer.current_epoch,
            "batch": batch_idx,
            "processes": self.trainer.world_size,
            "positions": given[1].positions,
            "loss": loss.item(),
        }
        with (folder / f"{rank}.jsonl").open("a") as file:
            file.write(json.dumps(note) + "\n")
        return loss

    BatchLoader._finished = named  # type: ignore[method-assign]
    ClassificationTask.training_step = noted  # type: ignore[method-assign]


def notes(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """Of each process, in the order in which they were written."""
    return {
        int(path.stem): [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("*.jsonl"))
    }


if __name__ == "__main__":
    from cvattn.harness.main import train

    record(Path(os.environ["CVATTN_NOTES"]))
    train(Path(__file__).parents[2] / "conf")
    sys.exit(0)

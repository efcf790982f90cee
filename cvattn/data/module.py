"""What every data module of ours has, whatever its samples are."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from cvattn.data.checks import check_int
from cvattn.data.info import Facts
from cvattn.data.loader import Batches


class DataModule(pl.LightningDataModule):
    """Base of the data modules.

    Args:
        batch_size: training samples of one step over all processes together.
        eval_batch_size: samples of one evaluation batch in one process.
        seed: of the order and the augmentation; never of the split.
    """

    def __init__(self, *, batch_size: int, eval_batch_size: int, seed: int) -> None:
        super().__init__()
        self.batch_size = check_int("batch_size", batch_size, minimum=1)
        self.eval_batch_size = check_int("eval_batch_size", eval_batch_size, minimum=1)
        self.seed = check_int("seed", seed, minimum=0)

    @property
    def for_task(self) -> dict[str, Any]:
        """What the task is to know of the data beside the values that it leaves open."""
        return {}

    def describe(self) -> Facts:
        """What can be known without reading the data; everything once ``setup()`` has run."""
        raise NotImplementedError

    def example_inputs(self, n: int, split: str = "val") -> tuple[Tensor, ...]:
        """What a network is called with for ``n`` samples, the same in every run, on the CPU."""
        raise NotImplementedError

    def further_tests(self) -> Mapping[str, Batches]:
        """Test sets beside the test set, by name: what is out of the range that is trained on."""
        return {}

    def _epoch(self) -> int:
        # To fit a few batches is to see the same ones in each epoch, augmentation included.
        if self.trainer is None or self.trainer.overfit_batches:  # type: ignore[attr-defined]
            return 0
        return self.trainer.current_epoch

    def _behind(self) -> int:
        """Training batches of this epoch that a continued run has behind it."""
        if self.trainer is None:
            return 0
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def _place(self) -> tuple[int, int]:
        """(rank, number of processes)."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _processes_here(self) -> int:
        """Processes of this run on this machine, each of which has a data module of its own."""
        return 1 if self.trainer is None else self.trainer.num_devices

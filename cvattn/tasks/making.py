"""What tasks have in common whose networks make images from noise."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from cvattn.data.counter import normal
from cvattn.tasks.base import NetworkTask
from cvattn.tasks.optimisation import OptimizerFactory

_VALIDATION = 0x5EED  # the seed of its noise, in every run


class MakingTask(NetworkTask):
    """Base of these tasks: what they are judged on is a function of a sample's place in its set.

    So two networks are compared on the same noise, which does not depend on the size of batches,
    the number of processes or the seed.

    Args:
        network, optimizer, warmup, final: as in :class:`NetworkTask`.
        channels_last: memory format of the images.
    """

    target: ClassVar[str | None] = "class"

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: OptimizerFactory,
        warmup: float,
        final: float,
        channels_last: bool,
    ) -> None:
        super().__init__(
            network, optimizer=optimizer, warmup=warmup, final=final, label_smoothing=0.0
        )
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._seen = 0  # samples of this validation or test, in this process

    @abstractmethod
    def judge(self, stage: str, batch: tuple[Tensor, Tensor]) -> None:
        """Log the figures of a batch of "val" or "test"."""

    def answer_shape(self, *given: Tensor) -> tuple[int, ...]:
        return tuple(given[0].shape)

    def on_validation_epoch_start(self) -> None:
        self._seen = 0

    def on_test_epoch_start(self) -> None:
        self._seen = 0

    def on_predict_epoch_start(self) -> None:
        self._seen = 0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.judge("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.judge("test", batch)

    def next_places(self, count: int) -> Tensor:
        """Where the next samples of this process are in their set, int64 (count,)."""
        place = torch.arange(self._seen, self._seen + count)
        self._seen += count
        return place * self.trainer.world_size + self.trainer.global_rank

    def noise_at(self, places: Tensor, shape: Sequence[int], like: Tensor) -> Tensor:
        """(count, *shape) from a standard normal, of these places, as ``like`` is."""
        numbers = torch.Size(shape).numel()
        index = places.unsqueeze(1) * numbers + torch.arange(numbers)
        return normal(_VALIDATION, 0, index).view(-1, *shape).to(like)

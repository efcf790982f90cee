"""An exponential moving average of the weights, and which weights a run is judged by."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn

from cvattn.tasks import NetworkTask


class AveragedWeights(EMAWeightAveraging):
    """An exponential moving average of the weights, as soon as there is one.

    Until the first update of the average, the trained weights are validated, saved and tested;
    from then on the averaged ones, and checkpoints keep both. Lightning's own callback judges and
    saves the *initial* weights until then, and its first update may come after the first step and
    be the only one. The average is of float weights and buffers; counters are those of training.
    A task may compute buffers anew for the averaged weights (``settle``), which go into checkpoints
    from the next validation on.

    Args:
        decay: share of the average that an update keeps, in [0, 1): an average over about the last
            1 / (1 - decay) updates.
        update_every_n_steps: optimiser steps from one update to the next.
        update_starting_at_step: optimiser steps before averaging begins; None: 0. The first update
            is ``update_every_n_steps`` later.
        use_buffers: average the running moments of batch norms too; False: they are training's.
        device: where the average is kept; None: where the network is.
    """

    def __init__(
        self,
        decay: float = 0.999,
        *,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        use_buffers: bool = True,
        device: str | None = None,
    ) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay={decay} must be in [0, 1); with 1 the average never moves")
        if update_every_n_steps < 1:
            raise ValueError(f"update_every_n_steps={update_every_n_steps} must be at least 1")
        if update_starting_at_step is not None and update_starting_at_step < 0:
            raise ValueError(
                f"update_starting_at_step={update_starting_at_step} must be 0 or more, or null"
            )
        super().__init__(
            device=device,
            use_buffers=use_buffers,
            decay=decay,
            update_every_n_steps=update_every_n_steps,
            update_starting_at_step=update_starting_at_step,
        )
        self.decay = decay
        self._updates = 0
        self._trained: list[Tensor] = []  # while the averaged weights stand in for them

    @property
    def begun(self) -> bool:
        """Whether there is an average, which then is what is judged, saved and tested."""
        return self._updates > 0

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        if step_idx is None:
            return False
        past = step_idx + 1 - (self.update_starting_at_step or 0)
        return past > 0 and past % self.update_every_n_steps == 0

    def note(self, steps: int) -> str:
        """What a person should know of the average after that many steps of the run."""
        if not self.begun:
            return (
                "weights: no average was begun (callbacks.ema.update_starting_at_step="
                f"{self.update_starting_at_step}, update_every_n_steps="
                f"{self.update_every_n_steps}; the run took {steps} steps): the trained weights "
                "were validated, saved and tested"
            )
        span = 1 / (1 - self.decay)
        if self._updates < span:
            return (
                f"weights: averaged over {self._updates} updates, fewer than the {span:,.0f} that "
                f"callbacks.ema.decay={self.decay} is for: the first of them weighs most"
            )
        return ""

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        before = self._latest_update_step
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._latest_update_step == before:
            return
        self._updates += 1
        assert self._average_model is not None
        for average, current in zip(
            self._average_model.module.modules(), pl_module.modules(), strict=True
        ):
            of_training = _of_training(current)
            for name, buffer in average.named_buffers(recurse=False):
                if name in of_training:
                    buffer.copy_(getattr(current, name))

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning swaps the two, which rounds the average where the network has fewer bits.
        if self.begun and trainer.state.fn == TrainerFn.FITTING:
            self._trained = [tensor.detach().clone() for tensor in _tensors(pl_module)]
            self._copy_average_to_current(pl_module)
            self._settle(pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._put_back(pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Stopped within a validation: what is saved from here on is sorted again."""
        self._put_back(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.begun:
            super().on_train_end(trainer, pl_module)
            self._settle(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._updates = state_dict["updates"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self.begun and self._average_model is not None:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """In training both; for a test the averaged weights, which are the checkpoint's own."""
        if "averaging_state" not in checkpoint:
            return
        self._updates = int(checkpoint["averaging_state"].get("n_averaged", torch.ones(())))
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    @torch.no_grad()
    def _settle(self, pl_module: pl.LightningModule) -> None:
        """What the task computes anew for the averaged weights is saved with them."""
        if isinstance(pl_module, NetworkTask) and pl_module.settle():
            assert self._average_model is not None
            kept = self._average_model.module.buffers()
            for buffer, settled in zip(kept, pl_module.buffers(), strict=True):
                buffer.copy_(settled)

    @torch.no_grad()
    def _put_back(self, pl_module: pl.LightningModule) -> None:
        if self._trained:
            for tensor, trained in zip(_tensors(pl_module), self._trained, strict=True):
                tensor.copy_(trained)
            self._trained = []


def _of_training(module: nn.Module) -> set[str]:
    """The buffers of this module by itself whose mean means nothing."""
    buffers = dict(module.named_buffers(recurse=False))
    if {"_u", "_v"} <= buffers.keys():  # torch's spectral norm, whose class is private
        return {"_u", "_v"}
    return {name for name, buffer in buffers.items() if not buffer.is_floating_point()}


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(module.parameters(), module.buffers())


def averaged(callbacks: Iterable[pl.Callback]) -> AveragedWeights | None:
    """The callback that averages, if there is one."""
    return next((c for c in callbacks if isinstance(c, AveragedWeights)), None)

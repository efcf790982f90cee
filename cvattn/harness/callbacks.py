"""What happens beside the training steps: random state, clear ends, a look at the attention."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from cvattn.blocks import MapAttention
from cvattn.checkpoint import describe
from cvattn.data.counter import seed_of
from cvattn.harness.config.errors import TrainingStopped
from cvattn.maps import attention_entropy, attention_modules, capture_attention
from cvattn.tasks import NetworkTask


class ReseedEachBatch(pl.Callback):
    """Makes the random state of each step a function of (seed, step, process).

    Lightning does not restore generators, so a continued run with dropout would differ from one
    that was never interrupted. This way the two are equal, bit for bit.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Not global_step, which stands still while gradients accumulate.
        seed = seed_of(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        if pl_module.device.type == "cpu":
            # torch.manual_seed also writes a stack trace for each kind of device that is not there.
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)


class StopWhenNotFinite(pl.Callback):
    """Ends training at the first loss that is NaN or infinite; the last good checkpoint stays."""

    def __init__(self) -> None:
        self._bad: Tensor | None = None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        bad = ~torch.isfinite(loss.detach())
        # Reading a value of a GPU waits for it, so there it is read now and then.
        if loss.device.type != "cpu" and batch_idx % 50 and not trainer.is_last_batch:
            self._bad = bad if self._bad is None else self._bad | bad
            return
        if bool(bad) or (self._bad is not None and bool(self._bad)):
            raise TrainingStopped(
                f"the loss became {loss.item()} at step {trainer.global_step} (epoch "
                f"{trainer.current_epoch + 1}). A lower learning rate "
                "(recipe.optimizer.lr), a longer recipe.warmup, trainer.gradient_clip_val=1.0 or "
                "trainer.precision=32-true often help."
            )
        self._bad = None


class ValidateAtTheLastStep(pl.Callback):
    """Where ``trainer.max_steps`` ends the run within an epoch, validates there, as at its end."""

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # it is over anyway; Lightning validates before it stops


class SavedContents(pl.Callback):
    """Puts into every checkpoint what ``cvattn.load`` and ``ckpt_path=`` need: plain values.

    Args:
        entry: that (:func:`cvattn.checkpoint.describe`); None: of the trainer's own network and
            data module, without a configuration.
    """

    def __init__(self, entry: dict[str, Any] | None = None) -> None:
        self.entry = entry

    def on_save_checkpoint(
        self,
        trainer: pl.Trainer,
        pl_module: NetworkTask,  # type: ignore[override]
        checkpoint: dict[str, Any],
    ) -> None:
        if self.entry is None:
            info = trainer.datamodule.describe()  # type: ignore[attr-defined]
            self.entry = describe(pl_module.network, {}, {**info.meta(), **info.identity()})
        checkpoint["cvattn"] = self.entry


class AttentionMonitor(pl.Callback):
    """Logs once an epoch the gamma of each SAGAN block and the entropy of each attention block.

    ``gamma/<block>``; ``entropy/<block>`` in nats, averaged over heads and over fixed validation
    images (or other samples, as the data has them).

    Args:
        num_images: how many of them.
    """

    def __init__(self, num_images: int = 64) -> None:
        if num_images < 1:
            raise ValueError(f"num_images={num_images} must be at least 1")
        self.num_images = num_images
        self._inputs: tuple[Tensor, ...] | None = None

    def on_validation_epoch_end(
        self,
        trainer: pl.Trainer,
        pl_module: NetworkTask,  # type: ignore[override]
    ) -> None:
        network = pl_module.network
        blocks = attention_modules(network)
        if trainer.sanity_checking or not blocks:
            return
        values = {
            f"gamma/{name}": block.gamma.detach().float()[0]
            for name, block in blocks.items()
            if isinstance(block, MapAttention) and block.gamma is not None
        }
        if self._inputs is None:
            data = trainer.datamodule  # type: ignore[attr-defined]
            self._inputs = data.example_inputs(self.num_images)
        given = (trainer.precision_plugin.convert_input(each) for each in self._inputs)
        inputs = pl_module.call_arguments(*(each.to(pl_module.device) for each in given))
        with torch.no_grad(), capture_attention(network) as maps:
            network(*inputs)
        for name, weights in maps.items():
            values[f"entropy/{name}"] = attention_entropy(weights).mean().float()
        # Every process computes the same values from the same images.
        pl_module.log_dict(values, on_epoch=True, batch_size=1, rank_zero_only=True)

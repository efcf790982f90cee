"""Learning to name what an image shows."""

import math

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from cvattn.tasks.optimisation import OptimizerFactory, parameter_groups, warmup_cosine


class ClassificationTask(pl.LightningModule):
    """Cross-entropy and accuracy for a network that gives logits.

    Logs ``{train,val,test}/{loss,accuracy}`` once an epoch, over all processes.

    Args:
        network: images (B, C, H, W) -> logits (B, num_classes).
        num_classes: number of classes.
        optimizer: takes the parameter groups and returns the optimiser.
        warmup, final: of the schedule (:func:`warmup_cosine`).
        label_smoothing: of the training loss; validation and test losses have none.
        channels_last: memory format of the images; convolutions are often faster so.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int,
        optimizer: OptimizerFactory,
        warmup: float = 0.1,
        final: float = 0.0,
        label_smoothing: float = 0.0,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing={label_smoothing} must be in [0, 1)")
        self.network = network
        self.optimizer = optimizer
        self.warmup = warmup
        self.final = final
        self.label_smoothing = label_smoothing
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.accuracy = nn.ModuleDict(
            {
                # "train" is taken by nn.Module.train.
                f"{stage}_accuracy": MulticlassAccuracy(num_classes, average="micro")
                for stage in ("train", "val", "test")
            }
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.contiguous(memory_format=self.memory_format))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._step("train", batch, self.label_smoothing)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step("test", batch)

    def _step(self, stage: str, batch: tuple[Tensor, Tensor], smoothing: float = 0.0) -> Tensor:
        images, labels = batch
        logits = self(images).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        accuracy = self.accuracy[f"{stage}_accuracy"]
        accuracy.update(logits.detach(), labels)
        once = {"on_step": False, "on_epoch": True, "batch_size": len(labels)}
        # Evaluation shards may differ by an image between processes; Lightning weighs by batch_size
        # within a process, and sync_dist averages over them.
        self.log(f"{stage}/loss", loss, sync_dist=stage != "train", **once)
        self.log(f"{stage}/accuracy", accuracy, **once)
        return loss

    def configure_optimizers(self) -> dict:
        optimizer = self.optimizer(parameter_groups(self.network))
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise ValueError(
                "the schedule needs an end: set trainer.max_epochs or trainer.max_steps to a "
                "positive number"
            )
        schedule = warmup_cosine(
            optimizer, steps=int(steps), warmup=self.warmup, final=self.final
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

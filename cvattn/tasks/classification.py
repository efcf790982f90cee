"""Learning to name what an image shows."""

import math

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRScheduler
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
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.contiguous(memory_format=self.memory_format))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._step("train", self.train_accuracy, batch, self.label_smoothing)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step("val", self.val_accuracy, batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step("test", self.test_accuracy, batch)

    def _step(
        self,
        stage: str,
        accuracy: MulticlassAccuracy,
        batch: tuple[Tensor, Tensor],
        smoothing: float = 0.0,
    ) -> Tensor:
        images, labels = batch
        logits = self(images).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        accuracy.update(logits.detach(), labels)
        # Both are means over images, also where processes or batches have unequal numbers of them.
        size = len(labels)
        self.log(
            f"{stage}/loss", loss, on_step=False, on_epoch=True, batch_size=size, sync_dist=True
        )
        self.log(f"{stage}/accuracy", accuracy, on_step=False, on_epoch=True, batch_size=size)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer(parameter_groups(self.network))
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise ValueError(
                "the schedule needs an end: set trainer.max_epochs or trainer.max_steps to a "
                "positive number"
            )
        schedule = warmup_cosine(optimizer, steps=int(steps), warmup=self.warmup, final=self.final)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

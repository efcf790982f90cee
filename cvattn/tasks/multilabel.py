"""Learning to name everything that an image shows."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics.classification import MultilabelF1Score

from cvattn.tasks.average_precision import MeanAveragePrecision
from cvattn.tasks.base import Criterion, NetworkTask
from cvattn.tasks.optimisation import OptimizerFactory, scale_inserted
from cvattn.tasks.resizing import ProgressiveResizing

Batch = tuple[Tensor, Tensor]


class MultilabelTask(NetworkTask):
    """Binary cross-entropy for a network that gives a logit for each label.

    Logs once an epoch, over all processes, ``{train,val,test}/loss``, a mean over samples and
    labels, and ``{val,test}/{mean_average_precision,f1_macro}``: the mean over the labels of the
    average precision (:class:`cvattn.tasks.average_precision.MeanAveragePrecision`), and of the F1
    score where a label is given to what has more than 0.5 of it. ``trainer.predict`` gives logits,
    a batch at a time.

    Args:
        network: images (B, C, H, W) -> logits (B, num_classes).
        num_classes: number of labels; targets are float (B, num_classes) of 0 and 1.
        optimizer, warmup, final: as in :class:`NetworkTask`.
        label_smoothing: targets are drawn towards 1/2 by that share, in training.
        inserted_lr, resizing, channels_last: as in :class:`cvattn.tasks.ClassificationTask`.

    Attributes:
        size: (H, W) of the last batch that was trained on.
    """

    criterion = Criterion("val/mean_average_precision", "max")
    target: ClassVar[str | None] = "labels"

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int,
        optimizer: OptimizerFactory,
        warmup: float = 0.1,
        final: float = 0.0,
        inserted_lr: float = 1.0,
        label_smoothing: float = 0.0,
        resizing: Sequence[tuple[float, float]] = (),
        channels_last: bool = False,
    ) -> None:
        super().__init__(
            network,
            optimizer=optimizer,
            warmup=warmup,
            final=final,
            label_smoothing=label_smoothing,
        )
        if num_classes < 2:
            raise ValueError(
                f"num_classes={num_classes}: expected 2 or more labels; of one that is there or "
                "not, ClassificationTask makes two classes"
            )
        self.num_classes = num_classes
        self.inserted_lr = inserted_lr
        patch_size = getattr(network, "patch_size", 1)
        self.resizing = ProgressiveResizing(resizing, multiple_of=patch_size)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.val_precision, self.test_precision = MeanAveragePrecision(), MeanAveragePrecision()
        self.val_f1, self.test_f1 = (MultilabelF1Score(num_classes) for _ in range(2))

    @property
    def shown(self) -> dict[str, str]:
        return {
            "val/mean_average_precision": "validation mAP",
            "test/mean_average_precision": "test mAP",
            "test/f1_macro": "test F1 (macro)",
        }

    def answer_shape(self, *given: Tensor) -> tuple[int, ...]:
        return len(given[0]), self.num_classes

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.contiguous(memory_format=self.memory_format))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        images = self.resizing(images, self.trainer.global_step / self._steps)
        self.size = (images.shape[-2], images.shape[-1])
        targets = labels * (1 - self.label_smoothing) + self.label_smoothing / 2
        loss = F.binary_cross_entropy_with_logits(self(images).float(), targets)
        self.note_training("train/loss", loss, len(labels))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._judge("val", self.val_precision, self.val_f1, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._judge("test", self.test_precision, self.test_f1, batch)

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> Tensor:
        """The logits (B, num_classes) of a batch of images, or of images and labels."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        return self(images).float()

    def _judge(
        self, stage: str, precision: MeanAveragePrecision, f1: MultilabelF1Score, batch: Batch
    ) -> None:
        images, labels = batch
        logits = self(images).float()
        loss = F.binary_cross_entropy_with_logits(logits, labels)
        self.log_epoch(f"{stage}/loss", loss, len(labels))
        precision.update(logits, labels)
        self.log_epoch(f"{stage}/mean_average_precision", precision, len(labels))
        f1.update((logits > 0).long(), labels.long())
        self.log_epoch(f"{stage}/f1_macro", f1, len(labels))

    def make_optimizers(self) -> list[Optimizer]:
        made = super().make_optimizers()
        return [scale_inserted(optimizer, self.inserted_lr) for optimizer in made]

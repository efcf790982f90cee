"""Learning to name what every pixel shows."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from cvattn.data import VOID, Facts
from cvattn.models import SAGANClassifier, TimmCNN, VisionTransformer
from cvattn.tasks.base import Criterion, NetworkTask
from cvattn.tasks.mean_iou import MeanIoU, PixelAccuracy
from cvattn.tasks.optimisation import OptimizerFactory, scale_inserted

Batch = tuple[Tensor, Tensor]


class SegmentationTask(NetworkTask):
    """Cross-entropy and mean IoU for a network that gives logits for every pixel.

    Pixels without a class (:data:`cvattn.data.VOID`) count nowhere. Logs once an epoch
    ``{train,val,test}/{loss,pixel_accuracy}``, means over all pixels that have a class, and
    ``{val,test}/mean_iou`` (:func:`cvattn.tasks.mean_iou.mean_iou`), over all processes.
    ``trainer.predict`` gives masks, a batch at a time.

    Args:
        network: images (B, C, H, W) -> logits (B, num_classes, H, W).
        num_classes: number of classes.
        optimizer, warmup, final, label_smoothing: as in :class:`NetworkTask`.
        inserted_lr: as in :class:`cvattn.tasks.ClassificationTask`.
        channels_last: memory format of the images.

    Attributes:
        size: (H, W) of the last batch that was trained on.
    """

    criterion = Criterion("val/mean_iou", "max")
    target: ClassVar[str | None] = "mask"

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
        channels_last: bool = False,
    ) -> None:
        super().__init__(
            network,
            optimizer=optimizer,
            warmup=warmup,
            final=final,
            label_smoothing=label_smoothing,
        )
        _check_dense(network, num_classes)
        self.num_classes = num_classes
        self.inserted_lr = inserted_lr
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.val_mean_iou, self.test_mean_iou = MeanIoU(num_classes), MeanIoU(num_classes)
        self.val_accuracy, self.test_accuracy = (PixelAccuracy(num_classes) for _ in range(2))

    @classmethod
    def network_values(cls, info: Facts) -> dict[str, Any]:
        return {"timed": False, "classes": 0, "out_channels": info.fills()["num_classes"]}

    @property
    def shown(self) -> dict[str, str]:
        return {
            "val/mean_iou": "validation mean IoU",
            "test/mean_iou": "test mean IoU",
            "test/pixel_accuracy": "test pixel accuracy",
        }

    def answer_shape(self, *given: Tensor) -> tuple[int, ...]:
        images = given[0]
        return len(images), self.num_classes, *images.shape[-2:]

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.contiguous(memory_format=self.memory_format))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, masks = batch
        self.size = (images.shape[-2], images.shape[-1])
        logits, masks = self(images).float(), masks.long()
        real = masks != VOID
        count = int(real.sum())
        loss = self._loss(logits, masks, count, self.label_smoothing)
        right = ((logits.argmax(1) == masks) & real).sum() / max(count, 1)
        self.note_training("train/loss", loss, count)
        self.note_training("train/pixel_accuracy", right, count)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._judge("val", self.val_mean_iou, self.val_accuracy, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._judge("test", self.test_mean_iou, self.test_accuracy, batch)

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> Tensor:
        """The likeliest class of each pixel, int64 (B, H, W)."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        return self(images).argmax(1)

    def _judge(self, stage: str, iou: MeanIoU, accuracy: PixelAccuracy, batch: Batch) -> None:
        images, masks = batch
        logits, masks = self(images).float(), masks.long()
        count = int((masks != VOID).sum())
        self.log_epoch(f"{stage}/loss", self._loss(logits, masks, count, 0.0), count)
        guesses = logits.argmax(1)
        for name, metric in (("mean_iou", iou), ("pixel_accuracy", accuracy)):
            metric.update(guesses, masks)
            self.log_epoch(f"{stage}/{name}", metric, count)

    def _loss(self, logits: Tensor, masks: Tensor, count: int, smoothing: float) -> Tensor:
        """The mean over the pixels that have a class; 0 where none has."""
        total = F.cross_entropy(
            logits, masks, ignore_index=VOID, label_smoothing=smoothing, reduction="sum"
        )
        return total / max(count, 1)

    def make_optimizers(self) -> list[Optimizer]:
        made = super().make_optimizers()
        return [scale_inserted(optimizer, self.inserted_lr) for optimizer in made]


def _check_dense(network: nn.Module, num_classes: int) -> None:
    """TypeError or ValueError of networks that are known not to give so many logits a pixel."""
    if isinstance(network, (SAGANClassifier, TimmCNN, VisionTransformer)):
        raise TypeError(
            f"{type(network).__name__} names whole images, and this task every pixel: the models "
            "for it are segmenter, and unet"
        )
    if getattr(network, "timed", False) or getattr(network, "classes", 0):
        raise TypeError(
            f"{type(network).__name__} is called with times or classes beside the images: for this "
            "task it is built with timed=false and classes=0"
        )
    outputs = getattr(network, "out_channels", num_classes)
    if outputs != num_classes:
        raise ValueError(
            f"the network gives {outputs} maps, the data has {num_classes} classes: leave "
            "model.out_channels= out"
        )

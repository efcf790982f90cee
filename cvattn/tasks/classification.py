"""Learning to name what an image shows."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics.classification import MulticlassAccuracy

from cvattn.data import views_of
from cvattn.tasks.base import NetworkTask
from cvattn.tasks.mixing import mixing
from cvattn.tasks.optimisation import OptimizerFactory, scale_inserted
from cvattn.tasks.resizing import ProgressiveResizing


class ClassificationTask(NetworkTask):
    """Cross-entropy and accuracy for a network that gives logits.

    Logs ``{train,val,test}/{loss,accuracy}`` once an epoch, over all processes, and
    ``test/accuracy_views`` where several views of a test image are averaged. ``trainer.predict``
    gives logits, a batch at a time.

    Args:
        network: images (B, C, H, W) -> logits (B, num_classes).
        num_classes: number of classes.
        optimizer, warmup, final, label_smoothing: as in :class:`NetworkTask`.
        inserted_lr: factor on the learning rate of inserted attention blocks, which are new where
            the network around them may be trained already.
        mixup, cutmix: see :func:`cvattn.tasks.mixing.mixing`; the training accuracy then counts
            the class of which there is most in an image.
        resizing: phases of smaller training images (:class:`ProgressiveResizing`), in whole patches
            of a network that has a ``patch_size``.
        channels_last: memory format of the images; convolutions are often faster so.
        test_views: see :func:`cvattn.data.views_of`.

    Attributes:
        size: (H, W) of the last batch that was trained on.
    """

    target: ClassVar[str | None] = "class"

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
        mixup: float = 0.0,
        cutmix: float = 0.0,
        resizing: Sequence[tuple[float, float]] = (),
        channels_last: bool = False,
        test_views: str = "none",
    ) -> None:
        super().__init__(
            network,
            optimizer=optimizer,
            warmup=warmup,
            final=final,
            label_smoothing=label_smoothing,
        )
        self.num_classes = num_classes
        self.inserted_lr = inserted_lr
        self.mixing = mixing(mixup, cutmix, num_classes)
        patch_size = getattr(network, "patch_size", 1)
        self.resizing = ProgressiveResizing(resizing, multiple_of=patch_size)
        self.test_views = test_views
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.views_accuracy = MulticlassAccuracy(num_classes, average="micro")

    @property
    def shown(self) -> dict[str, str]:
        shown = {"val/accuracy": "validation accuracy", "test/accuracy": "test accuracy"}
        if self.test_views != "none":
            shown["test/accuracy_views"] = f"with views {self.test_views}"
        return shown

    def answer_shape(self, *given: Tensor) -> tuple[int, ...]:
        return len(given[0]), self.num_classes

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.contiguous(memory_format=self.memory_format))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        if self.mixing is not None:
            images, labels = self.mixing(images, labels)
        images = self.resizing(images, self.trainer.global_step / self._steps)
        self.size = (images.shape[-2], images.shape[-1])
        logits = self(images).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        right = (logits.argmax(-1) == _classes(labels)).float().mean()
        self.note_training("train/loss", loss, len(labels))
        self.note_training("train/accuracy", right, len(labels))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self._judge("val", self.val_accuracy, self(images), labels)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        (own, _), *others = views_of(images, self.test_views)
        logits = self(images)
        self._judge("test", self.test_accuracy, logits, labels)
        if others:
            mean = own * logits + sum(weight * self(view) for weight, view in others)
            self._count("test/accuracy_views", self.views_accuracy, mean, labels)

    def predict_step(self, batch: tuple[Tensor, Tensor] | Tensor, batch_idx: int) -> Tensor:
        """The logits (B, num_classes) of a batch of images, or of images and labels."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        return self(images).float()

    def _judge(
        self, stage: str, accuracy: MulticlassAccuracy, logits: Tensor, labels: Tensor
    ) -> None:
        self.log_epoch(f"{stage}/loss", F.cross_entropy(logits.float(), labels), len(labels))
        self._count(f"{stage}/accuracy", accuracy, logits, labels)

    def _count(
        self, name: str, accuracy: MulticlassAccuracy, logits: Tensor, labels: Tensor
    ) -> None:
        accuracy.update(logits, labels)
        self.log_epoch(name, accuracy, len(labels))

    def make_optimizer(self) -> Optimizer:
        return scale_inserted(super().make_optimizer(), self.inserted_lr)


def _classes(labels: Tensor) -> Tensor:
    """(B,) of labels, or of the shares of each class that mixing makes: the largest one's."""
    return labels.argmax(-1) if labels.ndim == 2 else labels

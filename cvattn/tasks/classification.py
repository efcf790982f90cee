"""Learning to name what an image shows."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from cvattn.data import DataModule, Facts, views_of
from cvattn.tasks.base import Criterion, NetworkTask
from cvattn.tasks.class_weights import (
    ClassWeights,
    balanced_weights,
    check_alone,
    given_weights,
)
from cvattn.tasks.macro_accuracy import MacroAccuracy
from cvattn.tasks.mixing import mixing
from cvattn.tasks.optimisation import OptimizerFactory, scale_inserted
from cvattn.tasks.resizing import ProgressiveResizing
from cvattn.tasks.teacher import SHARE, Teacher, check_teaching, distillation_loss

_CRITERIA = ("accuracy", "accuracy_macro")


class ClassificationTask(NetworkTask):
    """Cross-entropy and accuracy for a network that gives logits.

    Logs ``{train,val,test}/{loss,accuracy}`` and ``{val,test}/accuracy_macro``, in which each class
    counts the same (:class:`cvattn.tasks.macro_accuracy.MacroAccuracy`), once an epoch, over all
    processes, and ``test/accuracy_views`` where several views of a test image are averaged.
    ``trainer.predict`` gives logits, a batch at a time.

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
        class_weights: of the training loss, which is the mean over the samples of each one's loss
            times the weight of its class: one for each class, or "balanced"
            (:func:`cvattn.tasks.class_weights.balanced_weights`), counted by the data module
            (``class_counts``). Validation and test losses have none.
        teacher: a trained classifier that the network learns from, too: a checkpoint, the name of a
            network that comes with the package, or a module (:class:`cvattn.tasks.Teacher`). It
            sees the images as they are before ``resizing``, mixed ones too.
        teacher_share: what it says counts as that share of the training loss, the labels as the
            rest.
        teacher_temperature: see :func:`cvattn.tasks.teacher.distillation_loss`.
        criterion: what the best weights are chosen by: "accuracy" of the validation, or
            "accuracy_macro".
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
        class_weights: ClassWeights = None,
        teacher: str | nn.Module | None = None,
        teacher_share: float = SHARE,
        teacher_temperature: float | None = None,
        criterion: Literal["accuracy", "accuracy_macro"] = "accuracy",
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
        self.class_weights = class_weights
        self._weights = given_weights(class_weights, num_classes)
        check_teaching(teacher, teacher_share, teacher_temperature)
        self.teacher = None if teacher is None else Teacher(teacher)
        self.teacher_share, self.teacher_temperature = teacher_share, teacher_temperature
        self._teachers = [] if self.teacher is None else [self.teacher.identity]
        self.criterion = self.criterion_of({"criterion": criterion})
        self.test_views = test_views
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.views_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.val_macro, self.test_macro = MacroAccuracy(num_classes), MacroAccuracy(num_classes)

    @classmethod
    def criterion_of(cls, arguments: Mapping[str, Any]) -> Criterion:
        name = arguments.get("criterion", "accuracy")
        if name not in _CRITERIA:
            raise ValueError(f"criterion={name!r}: expected one of {', '.join(_CRITERIA)}")
        return Criterion(f"val/{name}", "max")

    def meet(self, info: Facts) -> list[str]:
        if self.teacher is None:
            return []
        self.teacher.meet(info)
        return [
            f"learns from {self.teacher.name}, too: {self.teacher.macs / 1e9:.3f} GMACs an image"
        ]

    def setup(self, stage: str) -> None:
        """Count the classes of the training data where ``class_weights`` are to be balanced.

        Raises:
            ValueError: nobody can count them, or they are evened out twice; a teacher does not know
                such data.
        """
        if stage != "fit":
            return
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, DataModule):
            self.meet(data.describe())
        if self.class_weights != "balanced":
            return
        check_alone("balanced", balanced_sampling=getattr(data, "balanced_sampling", False))
        counts = getattr(data, "class_counts", None)
        if counts is None:
            raise ValueError(
                "class_weights='balanced' needs a data module with class_counts, the number of "
                "training samples of each class; give a list of weights instead"
            )
        self._weights = balanced_weights(counts)

    @property
    def shown(self) -> dict[str, str]:
        shown = {"val/accuracy": "validation accuracy", "test/accuracy": "test accuracy"}
        if self.criterion.metric == "val/accuracy_macro":
            shown["val/accuracy_macro"] = "validation macro accuracy"
            shown["test/accuracy_macro"] = "test macro accuracy"
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
        taught = None if self.teacher is None else self.teacher(images)
        images = self.resizing(images, self.trainer.global_step / self._steps)
        self.size = (images.shape[-2], images.shape[-1])
        logits = self(images).float()
        loss = self._loss(logits, labels)
        if taught is not None:
            further = distillation_loss(logits, taught, self.teacher_temperature)
            loss = torch.lerp(loss, further, self.teacher_share)
        right = (logits.argmax(-1) == _classes(labels)).float().mean()
        self.note_training("train/loss", loss, len(labels))
        self.note_training("train/accuracy", right, len(labels))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self._judge("val", self(images), labels, self.val_accuracy, self.val_macro)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        (own, _), *others = views_of(images, self.test_views)
        logits = self(images)
        self._judge("test", logits, labels, self.test_accuracy, self.test_macro)
        if others:
            mean = own * logits + sum(weight * self(view) for weight, view in others)
            self._count("test/accuracy_views", self.views_accuracy, mean, labels)

    def predict_step(self, batch: tuple[Tensor, Tensor] | Tensor, batch_idx: int) -> Tensor:
        """The logits (B, num_classes) of a batch of images, or of images and labels."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        return self(images).float()

    def training_macs(self, network: nn.Module, *given: Tensor) -> int:
        own = super().training_macs(network, *given)
        # A third of a teacher's, which has a forward pass alone.
        return own if self.teacher is None else own + round(self.teacher.macs / 3)

    def remarks(self, tested: Mapping[str, float], evaluations: Sequence[float]) -> list[str]:
        if len(self._teachers) < 2:
            return []
        return [f"has had {len(self._teachers)} teachers: the weights of the one given changed"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["teachers"] = list(self._teachers)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._teachers = list(dict.fromkeys([*checkpoint.get("teachers", []), *self._teachers]))

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of training: the mean over the samples, of which each has its class's weight."""
        smoothing = self.label_smoothing
        if self._weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        self._weights = self._weights.to(logits)
        # By the number of samples, as parts of a batch in several processes need it; torch's own
        # mean is by the sum of their weights.
        total = F.cross_entropy(
            logits, labels, self._weights, label_smoothing=smoothing, reduction="sum"
        )
        return total / len(labels)

    def _judge(
        self,
        stage: str,
        logits: Tensor,
        labels: Tensor,
        accuracy: MulticlassAccuracy,
        macro: MacroAccuracy,
    ) -> None:
        self.log_epoch(f"{stage}/loss", F.cross_entropy(logits.float(), labels), len(labels))
        self._count(f"{stage}/accuracy", accuracy, logits, labels)
        self._count(f"{stage}/accuracy_macro", macro, logits, labels)

    def _count(self, name: str, accuracy: Metric, logits: Tensor, labels: Tensor) -> None:
        accuracy.update(logits, labels)
        self.log_epoch(name, accuracy, len(labels))

    def make_optimizers(self) -> list[Optimizer]:
        made = super().make_optimizers()
        return [scale_inserted(optimizer, self.inserted_lr) for optimizer in made]


def _classes(labels: Tensor) -> Tensor:
    """(B,) of labels, or of the shares of each class that mixing makes: the largest one's."""
    return labels.argmax(-1) if labels.ndim == 2 else labels

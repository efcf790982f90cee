"""Learning to make images: rectified flow."""

from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvattn.data import Facts
from cvattn.models.flow import generate, on_the_way
from cvattn.models.making import is_flow
from cvattn.tasks.base import Criterion
from cvattn.tasks.making import MakingTask
from cvattn.tasks.optimisation import OptimizerFactory

Times = Literal["uniform", "logit_normal"]
# The validation looks at so many times, evenly spread, one after the other.
_VALIDATED_TIMES = 16


class FlowTask(MakingTask):
    """The squared error of the velocity from noise to images (:mod:`cvattn.models.flow`).

    Logs ``{train,val,test}/loss`` once an epoch, per pixel and channel of normalised images. In
    validation and test, noise and time are functions of the sample's place in its set: two networks
    are compared on the same ones, so a difference is seen long before the spread of the losses
    would allow it. They do not depend on the size of batches, the number of processes or the seed.

    ``trainer.predict`` makes an image of each label in a batch, in 20 steps of Heun's method.

    Args:
        network: images (B, C, H, W), times (B,), labels (B,) or None -> velocities (B, C, H, W);
            with ``timed`` True and ``classes``, such as :class:`cvattn.models.UNet`. With
            ``network.classes`` 0 it gets no labels; otherwise that number as a label says "no
            class".
        num_classes: of the data.
        optimizer, warmup, final: as in :class:`NetworkTask`.
        label_dropout: share of the training labels that are left out, for guidance.
        times: how those of training are drawn: "uniform", or "logit_normal" for more in the middle
            (Esser et al., "Scaling Rectified Flow Transformers", 2024).
        channels_last: memory format of the images.

    Attributes:
        size: (H, W) of the last batch that was trained on.
    """

    criterion = Criterion("val/loss", "min")

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int,
        optimizer: OptimizerFactory,
        warmup: float = 0.1,
        final: float = 0.0,
        label_dropout: float = 0.1,
        times: Times = "uniform",
        channels_last: bool = False,
    ) -> None:
        super().__init__(
            network,
            optimizer=optimizer,
            warmup=warmup,
            final=final,
            channels_last=channels_last,
        )
        self.classes = _conditioned(network, num_classes)
        if not 0.0 <= label_dropout <= 1.0:
            raise ValueError(f"label_dropout={label_dropout} must be in [0, 1]")
        if times not in get_args(Times):
            raise ValueError(f"times={times!r}; expected one of {get_args(Times)}")
        self.label_dropout = label_dropout
        self.times = times

    @classmethod
    def network_values(cls, info: Facts) -> dict[str, Any]:
        return {"timed": True, "out_channels": info.fills().get("in_channels")}

    @property
    def shown(self) -> dict[str, str]:
        return {"val/loss": "validation loss", "test/loss": "test loss"}

    def forward(self, images: Tensor, times: Tensor, labels: Tensor | None) -> Tensor:
        """Velocities; ``labels`` are left out where the network has no classes."""
        images = images.contiguous(memory_format=self.memory_format)
        return self.network(images, times, labels if self.classes else None)

    def call_arguments(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Whole images, at time 1, without a class."""
        (images,) = given
        arguments = (images, images.new_ones(len(images)))
        none = torch.full((len(images),), self.classes, device=images.device)
        return (*arguments, none) if self.classes else arguments

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        self.size = (images.shape[-2], images.shape[-1])
        noise = torch.randn_like(images)
        draw = torch.rand if self.times == "uniform" else torch.randn
        times = draw(len(images), device=images.device)
        times = times if self.times == "uniform" else times.sigmoid()
        left_out = torch.rand(len(images), device=images.device) < self.label_dropout
        loss = self._loss(noise, images, times, labels.masked_fill(left_out, self.classes))
        self.note_training("train/loss", loss, len(labels))
        return loss

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Normalised images (B, C, H, W), one of each label."""
        images, labels = batch
        noise, _ = self._fixed(images)
        return generate(self, noise, labels)

    def judge(self, stage: str, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        noise, times = self._fixed(images)
        loss = self._loss(noise, images, times, labels)
        self.log_epoch(f"{stage}/loss", loss, len(labels))

    def _loss(self, noise: Tensor, images: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        velocity = self(on_the_way(noise, images, times), times, labels)
        return F.mse_loss(velocity.float(), images - noise)

    def _fixed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and times of the next samples of a set, by their places in it."""
        place = self.next_places(len(images))
        noise = self.noise_at(place, images.shape[1:], images)
        times = (place % _VALIDATED_TIMES + 0.5) / _VALIDATED_TIMES
        return noise, times.to(images)


def _conditioned(network: nn.Module, num_classes: int) -> int:
    """How many classes the network is told, 0 for none."""
    if not is_flow(network):
        raise TypeError(
            f"{type(network).__name__} makes no images: it is called without times and labels. The "
            "model for this task is unet, with timed=true; a network of one's own says with "
            "classes (how many it is told, 0: none) and timed=True that it is called so"
        )
    classes = cast(Any, network).classes
    if classes not in (0, num_classes):
        raise ValueError(
            f"the network is told {classes} classes and the data has {num_classes}: expected "
            f"{num_classes}, or 0 for one that is told none"
        )
    return classes

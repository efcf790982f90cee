"""Learning to make images against a discriminator: a generative adversarial network."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric

from cvattn.cost import count_macs
from cvattn.models.making import missing_of_a_pair
from cvattn.tasks.base import Criterion
from cvattn.tasks.diff_augment import DiffAugment
from cvattn.tasks.made_images import SlicedWasserstein, Spread
from cvattn.tasks.making import MakingTask
from cvattn.tasks.optimisation import OptimizerFactory, parameter_groups
from cvattn.tasks.standing_statistics import measured_anew

_STANDING, _STANDING_BATCHES = 1024, 16  # images whose statistics are those of averaged weights
_LAST = 10  # evaluations: such a game goes up and down, and the best one is lucky
_LEAST_SPREAD = 0.5


class GANTask(MakingTask):
    """The hinge game of Lim and Ye, "Geometric GAN" (2017), as SAGAN and BigGAN play it.

    A training step is one of the generator, for which the discriminator takes several: the batch is
    divided among these, and they and the generator's step make as many images as their part has. So
    steps, epochs, schedules and ``trainer.max_steps`` count what they count for every other task.
    Images that are made have the labels of those that they stand beside.

    Logs ``train/loss`` (the discriminator's, 2 where it cannot tell) and ``train/generator_loss``;
    for ``val`` and ``test`` the sliced Wasserstein distance ``swd`` (:class:`SlicedWasserstein`)
    and the ``spread`` within classes (:class:`Spread`), which falls towards 0 where all images of a
    class become one. The noise of these is a function of a sample's place in its set
    (:class:`cvattn.tasks.making.MakingTask`). Neither distance needs a network with weights of its
    own; ``python -m cvattn judge`` has those that do.

    ``trainer.predict`` makes an image of each label in a batch.

    Args:
        network: with ``noise_dim`` and ``classes``; noise (B, noise_dim), labels (B,) or None ->
            normalised images; and ``score``, normalised images and labels -> scores (B,), of its
            ``discriminator``; such as :class:`cvattn.models.SAGAN`. With ``network.classes`` 0 it
            gets no labels.
        num_classes: of the data.
        optimizer: of the generator.
        discriminator_optimizer: usually with a higher learning rate (Heusel et al., "GANs Trained
            by a Two Time-Scale Update Rule", 2017).
        warmup, final: of both schedules (:func:`warmup_cosine`).
        discriminator_steps: of the discriminator, for each of the generator.
        gradient_penalty: weight of half the squared gradient of the score of real images (R1;
            Mescheder et al., "Which Training Methods for GANs do actually Converge?", 2018); 0 =
            none.
        augment: kinds of :class:`DiffAugment` that the discriminator sees everything through.
        channels_last: memory format of the images.

    Attributes:
        size: (H, W) of the last batch that was trained on.
    """

    criterion = Criterion("val/swd", "min")

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int,
        optimizer: OptimizerFactory,
        discriminator_optimizer: OptimizerFactory,
        warmup: float = 0.0,
        final: float = 0.0,
        discriminator_steps: int = 1,
        gradient_penalty: float = 0.0,
        augment: Sequence[str] = (),
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
        if discriminator_steps < 1:
            raise ValueError(f"discriminator_steps={discriminator_steps} must be at least 1")
        if not gradient_penalty >= 0.0:
            raise ValueError(f"gradient_penalty={gradient_penalty} must be 0 (none) or more")
        self.automatic_optimization = False
        self.discriminator_optimizer = discriminator_optimizer
        self.discriminator_steps = discriminator_steps
        self.gradient_penalty = gradient_penalty
        self.augment = DiffAugment(augment)
        self.figures = nn.ModuleDict(
            {
                f"{stage}_{name}": metric()
                for stage in ("val", "test")
                for name, metric in (("swd", SlicedWasserstein), ("spread", Spread))
            }
        )

    @property
    def shown(self) -> dict[str, str]:
        return {
            "val/swd": "validation SWD",
            "test/swd": "test SWD",
            "test/spread": "spread within classes",
        }

    def remarks(self, tested: Mapping[str, float], evaluations: Sequence[float]) -> list[str]:
        said = []
        if len(evaluations) > 1:
            last = evaluations[-_LAST:]
            said.append(
                f"validation SWD of the last {len(last)} evaluations: mean "
                f"{sum(last) / len(last):.3f}, {min(last):.3f} to {max(last):.3f}; the best of all "
                f"{len(evaluations)}, {min(evaluations):.3f}, is lucky"
            )
        share = tested.get("test/spread")
        if share is not None and share < _LEAST_SPREAD:
            said.append(
                f"images of a class differ only {share:.0%} as much as real ones: the generator "
                "has collapsed, or is about to; a higher recipe.discriminator_optimizer.lr in "
                "comparison to the generator's, or more recipe.discriminator_steps, may help"
            )
        return said

    @property
    def _net(self) -> Any:
        return self.network

    def call_arguments(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Noise of zeros, and the first class."""
        (images,) = given
        noise = images.new_zeros(len(images), self._net.noise_dim)
        labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
        return (noise, labels) if self.classes else (noise,)

    def training_macs(self, network: nn.Module, *given: Tensor) -> int:
        """A third of what both cost forwards and backwards, for one real image.

        The generator forwards for the discriminator's step; its own step, forwards and backwards
        through both, but not to the discriminator's weights, once in ``discriminator_steps``. The
        penalty is the gradient of a gradient, counted as three passes.
        """
        net: Any = network
        arguments = self.call_arguments(*given)
        images = arguments[0].new_zeros(given[0].shape)
        made = count_macs(net.generator, *arguments)
        told = count_macs(net.discriminator, images, *arguments[1:])
        mine = 6 * told + made + (3 * told if self.gradient_penalty else 0)
        return round((mine + (3 * made + 2 * told) / self.discriminator_steps) / 3)

    def forward(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Normalised images; ``labels`` are left out where the network has no classes."""
        return self.network(noise, labels if self.classes else None)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        self.size = (images.shape[-2], images.shape[-1])
        images = images.contiguous(memory_format=self.memory_format)
        generator, discriminator = cast(list[LightningOptimizer], self.optimizers())
        steps = min(self.discriminator_steps, len(images))
        for real, told in zip(images.tensor_split(steps), labels.tensor_split(steps), strict=True):
            with torch.no_grad():
                made = self._make(real, told)
            loss = self._discriminator_loss(real, made, told)
            self._step(discriminator, loss, counted=False)
            self.note_training("train/loss", loss, len(told))
        with _fixed(self._net.discriminator):
            against = -self._score(self._make(real, told), told).mean()
            self._step(generator, against, counted=True)
        self.note_training("train/generator_loss", against, len(told))
        for schedule in cast(list[LambdaLR], self.lr_schedulers()):
            schedule.step()
        loss, against = loss.detach(), against.detach()
        return torch.where(against.isfinite(), loss, against)

    def _step(self, optimizer: LightningOptimizer, loss: Tensor, *, counted: bool) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        if counted:
            optimizer.step()
        else:
            # As the line above does, but for Lightning's count of the run's steps.
            self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None)

    def _make(self, real: Tensor, labels: Tensor) -> Tensor:
        """As many images as the real ones."""
        noise = torch.randn(len(real), self._net.noise_dim, dtype=real.dtype, device=real.device)
        return self(noise, labels).to(real).contiguous(memory_format=self.memory_format)

    def _score(self, images: Tensor, labels: Tensor) -> Tensor:
        scores = self._net.score(self.augment(images), labels if self.classes else None)
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    def _discriminator_loss(self, real: Tensor, made: Tensor, labels: Tensor) -> Tensor:
        if self.gradient_penalty:
            real = real.detach().requires_grad_()
        both = self._score(torch.cat([real, made]), torch.cat([labels, labels]))
        of_real, of_made = both.chunk(2)
        loss = F.relu(1.0 - of_real).mean() + F.relu(1.0 + of_made).mean()
        if self.gradient_penalty:
            (slope,) = torch.autograd.grad(of_real.sum(), real, create_graph=True)
            loss = loss + 0.5 * self.gradient_penalty * slope.flatten(1).square().sum(1).mean()
        return loss

    @torch.no_grad()
    def settle(self) -> bool:
        """Measure the statistics of the generator's batch norms, on noise that is always the same.

        "Standing statistics" (Brock et al., "Large Scale GAN Training for High Fidelity Natural
        Image Synthesis", 2019). Those of training are of other weights, and their average over a
        thousand steps is of none: with it, images of Fashion-MNIST were a quarter as bright.
        """
        generator = self._net.generator
        like = next(generator.parameters())
        with measured_anew(generator) as any_norms:
            # Each from end to end of the places, so that it has images of all classes.
            batches = torch.arange(_STANDING).view(-1, _STANDING_BATCHES).T
            for places in batches if any_norms else ():
                noise = self.noise_at(places, (self._net.noise_dim,), like)
                self(noise, self._labels_as_in_training(places).to(like.device))
        return any_norms

    def _labels_as_in_training(self, places: Tensor) -> Tensor:
        """Each class as often among ``_STANDING`` places as in the training data, if it says so."""
        data = getattr(self.trainer, "datamodule", None)
        even = getattr(data, "balanced_sampling", False)
        counts = None if even else getattr(data, "class_counts", None)
        shares = torch.ones(max(self.classes, 1)) if counts is None else torch.as_tensor(counts)
        ends = shares.double().cumsum(0) / shares.sum()
        return torch.bucketize((places + 0.5) / _STANDING, ends)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Normalised images (B, C, H, W), one of each label."""
        images, labels = batch
        return self(self._fixed_noise(images), labels)

    def judge(self, stage: str, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        made = self(self._fixed_noise(images), labels).to(images)
        kinds = labels if self.classes else torch.zeros_like(labels)
        for name in ("swd", "spread"):
            metric = cast(Metric, self.figures[f"{stage}_{name}"])
            metric.update(made, images, kinds)
            self.log_epoch(f"{stage}/{name}", metric, len(labels))

    def _fixed_noise(self, images: Tensor) -> Tensor:
        """Of as many samples of a set, the next ones."""
        return self.noise_at(self.next_places(len(images)), (self._net.noise_dim,), images)

    def make_optimizers(self) -> list[Optimizer]:
        """The generator's, and the discriminator's."""
        return [
            self.optimizer(parameter_groups(self._net.generator)),
            self.discriminator_optimizer(parameter_groups(self._net.discriminator)),
        ]


@contextmanager
def _fixed(network: nn.Module) -> Iterator[None]:
    """Within it no parameter of the network gets a gradient; what is held for good stays held."""
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)


def _conditioned(network: nn.Module, num_classes: int) -> int:
    """How many classes the network is told, 0 for none."""
    missing = missing_of_a_pair(network)
    if missing:
        raise TypeError(
            f"{type(network).__name__} is no pair of generator and discriminator: it has no "
            f"{', '.join(missing)}. The model for this task is sagan_gan"
        )
    classes = cast(Any, network).classes
    if classes not in (0, num_classes):
        raise ValueError(
            f"the network is told {classes} classes and the data has {num_classes}: expected "
            f"{num_classes}, or 0 for one that is told none"
        )
    return classes

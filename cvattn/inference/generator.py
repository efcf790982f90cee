"""A network that makes images, and what it needs to be used."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cvattn.core.devices import device_of
from cvattn.inference.errors import InferenceError, NotFiniteError
from cvattn.inference.image_network import ImageNetwork, facts_of, makes_images
from cvattn.inference.network import open_network
from cvattn.models.flow import Guided, Solver, Watch, complete, draw_noise, generate, unwatched

BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Way:
    """How images are made: see :func:`cvattn.models.flow.generate`.

    Attributes:
        guidance: see :class:`cvattn.models.flow.Guided`.
        seed: of the noise that they begin as.
    """

    steps: int = 20
    solver: Solver = "heun"
    guidance: float = 1.0
    seed: int = 0

    @property
    def words(self) -> str:
        return f"{self.steps} steps of {self.solver}, guidance {self.guidance:g}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Generator(ImageNetwork):
    """A network from a checkpoint that makes images out of noise, in eval mode.

    Attributes:
        labelled: whether it is told a class.
    """

    labelled: bool

    def sample(
        self,
        count: int,
        *,
        classes: Sequence[int] = (),
        way: Way | None = None,
        watch: Watch = unwatched,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Make images.

        Args:
            count: how many.
            classes: their labels, one after the other and over again; () for all classes in turn.
            way: how they are made.
            watch: called with the normalised samples of a batch and their time, at 0 and after each
                step.

        Returns:
            pixels, uint8 (count, C, H, W), and their labels, int64 (count,); of a network that is
            told none these are -1.

        Raises:
            InferenceError: classes for a network that is told none, or labels that it does not
                have.
            NotFiniteError: the network is of no use.
        """
        way = Way() if way is None else way
        labels = self.labels(count, classes)
        noise = draw_noise(count, (self.channels, *self.image_size), seed=way.seed)
        made = [
            generate(
                self._velocity(way),
                begin.to(self.device),
                told.to(self.device) if self.labelled else None,
                steps=way.steps,
                solver=way.solver,
                watch=watch,
            )
            for begin, told in zip(noise.split(BATCH), labels.split(BATCH), strict=True)
        ]
        return self._to_pixels(torch.cat(made)), labels.numpy()

    def complete(
        self,
        pixels: np.ndarray,
        known: np.ndarray,
        *,
        classes: Sequence[int] = (),
        rounds: int = 5,
        way: Way | None = None,
        watch: Watch = unwatched,
    ) -> np.ndarray:
        """Make what is hidden of images anew; see :func:`cvattn.models.flow.complete`.

        Args:
            pixels: uint8 (B, C, H, W).
            known: bool (B, H, W), True where a pixel stays as it is.
            classes: labels, one after the other and over again; () for none: the network then goes
                by what it sees.
            rounds: how often each step is made.

        Returns:
            uint8 (B, C, H, W).

        Raises:
            InferenceError: as in :meth:`sample`; no classes for a network that has never learned
                without, or with guidance.
        """
        way = Way() if way is None else way
        labels = self.labels_to_complete(len(pixels), classes)
        if self.labelled and not classes and way.guidance != 1.0:
            raise InferenceError(f"guidance={way.guidance} goes towards a class: say which")
        made = complete(
            self._velocity(way),
            draw_noise(len(pixels), pixels.shape[1:], seed=way.seed).to(self.device),
            self.normalise(pixels),
            torch.from_numpy(known).unsqueeze(1).to(self.device),
            labels.to(self.device) if self.labelled else None,
            steps=way.steps,
            solver=way.solver,
            rounds=rounds,
            seed=-1 - way.seed,  # no seed of ways that begin: the noise must be other noise
            watch=watch,
        )
        return np.where(known[:, None], pixels, self._to_pixels(made))

    @property
    def device(self) -> torch.device:
        return device_of(self.network)

    def _velocity(self, way: Way) -> Guided:
        if way.guidance != 1.0 and not self.labelled:
            raise InferenceError(
                f"guidance={way.guidance} goes towards a class, and this network is told none"
            )
        if way.guidance != 1.0:
            self._check_learned_without(f"guidance={way.guidance} compares with no class")
        return Guided(self.network, guidance=way.guidance, no_label=len(self.classes))

    def labels(self, count: int, classes: Sequence[int]) -> Tensor:
        """int64 (count,), as :meth:`sample` takes them in turn; -1 of a network that is told none.

        Raises:
            InferenceError: as in :meth:`sample`.
        """
        if not self.labelled:
            if classes:
                raise InferenceError("this network is told no class: it was trained without")
            return torch.full((count,), -1)
        unknown = [label for label in classes if not 0 <= label < len(self.classes)]
        if unknown:
            raise InferenceError(f"labels {unknown}: there are 0 to {len(self.classes) - 1}")
        chosen = torch.tensor(list(classes) or range(len(self.classes)))
        return chosen[torch.arange(count) % len(chosen)]

    def labels_to_complete(self, count: int, classes: Sequence[int]) -> Tensor:
        """int64 (count,), as :meth:`complete` takes them in turn.

        Raises:
            InferenceError: as there.
        """
        if classes or not self.labelled:
            return self.labels(count, classes)
        self._check_learned_without("no class is given")
        return torch.full((count,), len(self.classes))

    def _check_learned_without(self, why: str) -> None:
        task = self.config.get("task")
        if isinstance(task, dict) and task.get("label_dropout") == 0:
            raise InferenceError(
                f"{why}, and this network has never learned without a class "
                "(task.label_dropout=0): name a class, without guidance"
            )

    def _to_pixels(self, images: Tensor) -> np.ndarray:
        if not images.isfinite().all():
            raise NotFiniteError
        return self.pixels(images).transpose(0, 3, 1, 2)


def open_generator(path: str | os.PathLike[str], device: str = "cpu") -> Generator:
    """The generator of a checkpoint.

    Raises:
        InferenceError: there is none that can be used.
    """
    return as_generator(open_network(path, device), str(path))


def as_generator(network: nn.Module, name: str) -> Generator:
    """A network of :func:`open_network` as a generator; ``name`` is for messages.

    Raises:
        InferenceError: it makes no images.
    """
    if not makes_images(network):
        raise InferenceError(
            f"{name} holds a {type(network).__name__} that makes no images; networks that do are "
            "trained with model=unet task=flow"
        )
    return Generator(**facts_of(network, name), labelled=bool(network.classes))

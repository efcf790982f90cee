"""A network that makes images along a flow from noise: rectified flow."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cvattn.inference.errors import InferenceError
from cvattn.inference.generator import BATCH, Generator
from cvattn.models.flow import Guided, Solver, Watch, complete, draw_noise, generate, unwatched


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
class FlowGenerator(Generator):
    """One that has learned with ``task=flow``."""

    way = Way

    def sample(
        self,
        count: int,
        *,
        classes: Sequence[int] = (),
        way: Way | None = None,
        watch: Watch = unwatched,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`Generator.sample`.

        Args:
            watch: called with the normalised samples of a batch and their time, at 0 and after each
                step.
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

    def _velocity(self, way: Way) -> Guided:
        if way.guidance != 1.0 and not self.labelled:
            raise InferenceError(
                f"guidance={way.guidance} goes towards a class, and this network is told none"
            )
        if way.guidance != 1.0:
            self._check_learned_without(f"guidance={way.guidance} compares with no class")
        return Guided(self.network, guidance=way.guidance, no_label=len(self.classes))

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

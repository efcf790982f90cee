"""What a network learns from another one that is trained already."""

import copy
import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvattn.checkpoint import CheckpointError, load
from cvattn.cost import count_macs
from cvattn.data import DataInfo, Facts
from cvattn.integrity import digest
from cvattn.models.trained_input import TrainedInput, wanted_by_run

SHARE = 0.5  # of the training loss, where nobody says another


class Teacher:
    """The logits of a trained classifier, for the images that another network is trained on.

    It is no part of the network that learns: neither optimisers nor checkpoints have it.

    Args:
        network: a checkpoint of ours, the name of a network that comes with the package, or a
            module that takes the same normalised images as the one that learns; it is copied.

    Attributes:
        identity: of its weights.
        macs: multiply-accumulates for an image; 0 before it has met the data.

    Raises:
        ValueError: there is no such file, or it cannot be opened.
    """

    def __init__(self, network: str | os.PathLike[str] | nn.Module) -> None:
        if isinstance(network, nn.Module):
            self.name, made = type(network).__name__, copy.deepcopy(network)
        else:
            self.name, made = os.fspath(network), _opened(network)
        self.meta = getattr(made, "meta", None)
        self.network = made.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        self.identity = digest({}, self.network.state_dict())
        self.macs = 0
        self._input: nn.Module = nn.Identity()

    def meet(self, info: Facts) -> None:
        """Learn what the images are like, before the first one.

        Where it was trained on other means and deviations, images are converted to them.

        Raises:
            ValueError: it was trained on images of other classes, channels or sizes.
        """
        if isinstance(info, DataInfo) and isinstance(self.meta, dict):
            facts = info.meta()
            for key in ("classes", "channels", "image_size"):
                if self.meta.get(key) != facts[key]:
                    raise ValueError(
                        f"teacher={self.name}: its {key.replace('_', ' ')} is "
                        f"{self.meta.get(key)}, and that of the data {facts[key]}; expected one "
                        "trained on such images"
                    )
            self._input = TrainedInput(info.channels)
            self._input.wanted = wanted_by_run(self.meta)
            self._input.convert(info.mean, info.std)
        self.macs = count_macs(self.network, *info.zeros(info.size))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> logits (B, classes) in float32."""
        images = self._input.to(images)(images).contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.network.to(images)(images)
        return logits.float()


def distillation_loss(logits: Tensor, taught: Tensor, temperature: float | None) -> Tensor:
    """How far logits (B, classes) are from what a teacher says (B, classes); mean over the batch.

    Args:
        temperature: None: the teacher's decision alone counts, as a label (equation 3 of Touvron et
            al., "Training data-efficient image transformers & distillation through attention",
            2021; there a token of its own learns it, here the same logits do). A number: the
            Kullback-Leibler divergence of both distributions, softened by it, times its square
            (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015).
    """
    if temperature is None:
        return F.cross_entropy(logits, taught.argmax(-1))
    ours, its = (F.log_softmax(x / temperature, -1) for x in (logits, taught))
    return temperature**2 * F.kl_div(ours, its, reduction="batchmean", log_target=True)


def check_teaching(teacher: object, share: float, temperature: float | None) -> None:
    """Raise ValueError for values that teach nothing."""
    if teacher is None and (share != SHARE or temperature is not None):
        raise ValueError(
            f"teacher_share={share}, teacher_temperature={temperature}: there is no teacher that "
            "they are of; expected teacher=CHECKPOINT beside them"
        )
    if not 0.0 < share <= 1.0:
        raise ValueError(
            f"teacher_share={share}: expected a share of the loss in (0, 1]; teacher=null for none"
        )
    if temperature is not None and not 0.0 < temperature < float("inf"):
        raise ValueError(
            f"teacher_temperature={temperature}: expected a number above 0, or null for the "
            "teacher's decisions as labels"
        )


def _opened(path: str | os.PathLike[str]) -> nn.Module:
    try:
        return load(path)
    except (CheckpointError, FileNotFoundError) as error:
        raise ValueError(f"teacher: {error}") from error

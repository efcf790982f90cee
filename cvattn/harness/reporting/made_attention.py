"""Where a GAN looks: in the images that it makes, and to judge them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cvattn.core.devices import device_of
from cvattn.data import ImageDataModule
from cvattn.harness.reporting.pictures import draw_heats
from cvattn.maps import attention_heat, attention_modules
from cvattn.system import figures
from cvattn.tasks import GANTask

_IMAGES = 5


class _MakeAndJudge(nn.Module):
    """Scores of the images that a pair of networks makes from this noise, of these classes."""

    def __init__(self, pair: nn.Module, noise: Tensor, labels: Tensor | None) -> None:
        super().__init__()
        self.pair = pair
        self.given = noise, labels

    def forward(self, images: Tensor) -> Tensor:
        """Scores (B,); ``images`` say the size alone."""
        pair: Any = self.pair
        return pair.score(pair(*self.given), self.given[1])


def draw_made_attention(task: GANTask, data: ImageDataModule, path: Path) -> None:
    """Made images, one of each class, above where their middle looks in both networks -> a PNG.

    Nothing is drawn of a pair without attention.
    """
    if not attention_modules(task.network):
        return
    classes, device = data.describe().classes, device_of(task.network)
    network: Any = task.network
    noise = torch.randn(_IMAGES, network.noise_dim, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(_IMAGES, device=device) % task.classes if task.classes else None
    pair = _MakeAndJudge(network, noise.to(device), labels)
    with torch.no_grad():
        images = network(*pair.given)
        heats = attention_heat(pair, images, at=(images.shape[-2] // 2, images.shape[-1] // 2))
    named = {name.removeprefix("pair."): heat for name, heat in heats.items()}
    titles = [""] * _IMAGES if labels is None else [figures.label(classes[n], 22) for n in labels]
    draw_heats(data.denormalise(images), titles, named, path)

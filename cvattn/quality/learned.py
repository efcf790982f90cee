"""What a classifier learns from generated images: whether all that is real is among them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvattn.quality.reference import Reference

_BATCH = 64
_SHIFT = 2  # pixels, in each direction


@dataclass(frozen=True)
class Learned:
    """How well test images are known by a small classifier that has seen others.

    Attributes:
        samples: share of all test images that it knows after it was trained on the samples.
        training: the same after as many training images, which is what samples can be worth.
        count: images that it was trained on, each time.
        steps: of its training.
    """

    samples: float
    training: float
    count: int
    steps: int


def learn_from(
    samples: Tensor, labels: Tensor, reference: Reference, *, steps: int = 400
) -> Learned:
    """Train a small CNN on samples, and one on as many training images; ask both for test images.

    Ravuri and Vinyals, "Classification Accuracy Score for Conditional Generative Models" (2019),
    with a smaller network. A classifier that knows the samples well says that they are typical of
    their classes; this says whether they are all that the classes are. A generator that makes one
    image of each class passes the former and fails here.

    Args:
        samples: uint8 (N, C, H, W), N = ``reference.count``.
        labels: int64 (N,), the classes that were asked for.
        steps: of each training, in batches of 64.
    """
    at = reference.drawn("train", 0)
    train, test = (reference.data.split(name) for name in ("train", "test"))
    classes = len(reference.info.classes)
    tests = reference.images("test"), test.labels
    made, real = (
        _share_known(_trained(*given, classes, steps, reference.generator("learn")), *tests)
        for given in ((samples, labels), (reference.images("train")[at], train.labels[at]))
    )
    return Learned(made, real, count=reference.count, steps=steps)


class _Small(nn.Module):
    """Three 3x3 convolutions with batch norms, each of which halves the map, and a linear layer."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for wide in (24, 48, 96):
            layers += [
                nn.Conv2d(channels, wide, 3, padding=1, stride=2, bias=False),
                nn.BatchNorm2d(wide),
                nn.ReLU(),
            ]
            channels = wide
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> logits (B, classes)."""
        return self.head(self.layers(images.float() / 127.5 - 1.0).mean((2, 3)))


def _trained(
    images: Tensor, labels: Tensor, classes: int, steps: int, generator: torch.Generator
) -> _Small:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        network = _Small(images.shape[1], classes).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.enable_grad():
        for _ in range(steps):
            at = torch.randint(len(images), (_BATCH,), generator=generator)
            down, right = torch.randint(-_SHIFT, _SHIFT + 1, (2,), generator=generator).tolist()
            shifted = images[at].roll((down, right), (2, 3))
            F.cross_entropy(network(shifted), labels[at]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return network.eval()


@torch.no_grad()
def _share_known(network: _Small, images: Tensor, labels: Tensor) -> float:
    parts = zip(images.split(1000), labels.split(1000), strict=True)
    right = sum(int((network(part).argmax(1) == told).sum()) for part, told in parts)
    return right / len(images)

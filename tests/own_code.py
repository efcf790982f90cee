"""A user's own module in a folder of his: networks, a task, data."""

from pathlib import Path

MY_NET = '''
from torch import nn

import cvattn


class Net(nn.Module):
    """Images of any size -> logits."""

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 5):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, 2, 1)
        self.attention = cvattn.SelfAttention2d(width, gamma_init=0.5)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.attention(self.stem(x).relu()).mean((2, 3)))


class Sided(Net):
    def __init__(self, num_classes: int, image_size: int):
        super().__init__(num_classes)
        assert image_size == 32, image_size


class Outer:
    class Inner(Net):
        pass


def inserted(num_classes: int, depth: int = 1) -> nn.Module:
    layers = [nn.Sequential(nn.Conv2d(3, 7, 3, 2, 1), nn.ReLU())]
    layers += [nn.Sequential(nn.Conv2d(7, 7, 3, 2, 1), nn.ReLU()) for _ in range(depth)]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    network.append(nn.Linear(7, num_classes))
    return cvattn.insert_attention(network, after="1")


def silent(num_classes):
    return Net(num_classes)


def text(num_classes: int) -> str:
    return "no network"


class Pair(Net):
    def forward(self, x):
        return super().forward(x), x


class Grey(Net):
    def __init__(self, num_classes: int):
        super().__init__(num_classes, in_channels=1)


class Stubborn(Net):
    def __init__(self):
        raise RuntimeError("this class is never content")
'''
MY_PARTS = '''
import torch.nn.functional as F

from cvattn.data import DigitsData
from cvattn.tasks import ClassificationTask


class Focal(ClassificationTask):
    """Cross-entropy that cares less for what is right already."""

    seen = []

    def __init__(self, *args, focus: float = 2.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.focus = focus

    def training_step(self, batch, batch_idx):
        self.seen.append(self.focus)
        images, labels = batch
        log_p = self(images).log_softmax(-1).gather(1, labels[:, None])[:, 0]
        loss = (-((1 - log_p.exp()) ** self.focus) * log_p).mean()
        self.note_training("train/loss", loss, len(labels))
        return loss


class Half(DigitsData):
    """Digits, of which every other one is trained on."""

    def __init__(self, *, batch_size: int, seed: int, every: int = 2):
        super().__init__(batch_size=batch_size, seed=seed)
        self.every = every

    def _read(self):
        sets, info = super()._read()
        some = sets["train"]
        kept = type(some)(some.images[:: self.every], some.labels[:: self.every])
        return {**sets, "train": kept}, info
'''


def write_own_code(folder: Path) -> Path:
    """``my_net.py``, ``my_parts.py`` and two that cannot be imported."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "my_net.py").write_text(MY_NET)
    (folder / "my_parts.py").write_text(MY_PARTS)
    (folder / "broken.py").write_text("import no_such_package\n\n\nclass Net: ...\n")
    (folder / "unfinished.py").write_text("class Net(\n")
    return folder

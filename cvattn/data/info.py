"""What a data set says about itself, and of what a network for it is made."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cvattn.core import Alphabet
from cvattn.core.alphabet import PAD

VOID = 255  # in masks in memory, and the index that a loss ignores


def a_target(target: str | None) -> str:
    """A :attr:`Facts.target` in words: "a class", "several labels"."""
    return "several labels" if target == "labels" else f"a {target or 'value'}"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts that models, tasks and summaries need about any data set.

    What needs the data to be read is completed by ``setup()`` and then found in ``.info``.

    Attributes:
        name: of the data, as a configuration chooses it.
        train_size, val_size, test_size: samples in each part.
        source: where the data came from, in words.
        official_pixels: whether the pixels are the published ones, bit for bit; None where the
            question has no meaning or is not answered yet.
        fingerprint: the first 16 hex digits of the sha256 of the test part, of its pixels; of
            pictures that are decoded anew each time, "files-" and 16 digits of the names and sizes
            of their files; "" before setup.
        unit: what a sample is called; its plural has an s.
        target: what each sample has for a network to learn: a "class", "labels" (several), a "mask"
            or a "text"; None: the data does not say.
    """

    name: str
    train_size: int
    val_size: int
    test_size: int
    source: str
    official_pixels: bool | None = None
    fingerprint: str = ""

    unit: ClassVar[str]
    target: ClassVar[str | None] = None

    @property
    def label(self) -> str:
        """The data's name as it must stand beside every figure from it."""
        return f"{self.name} (JPEG copy)" if self.official_pixels is False else self.name

    @property
    def size(self) -> tuple[int, ...]:
        """What a sample's cost depends on, of a typical one."""
        raise NotImplementedError

    def zeros(self, size: tuple[int, ...]) -> tuple[Tensor, ...]:
        """What a network is called with, for one sample of that size: zeros, for counting."""
        raise NotImplementedError

    def fills(self) -> dict[str, Any]:
        """The values that model and task leave open for the data."""
        raise NotImplementedError

    def meta(self) -> dict[str, Any]:
        """What a checkpoint must carry for its network to be used: plain values."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """What a run that is continued compares, beside :meth:`meta`, to see the data unchanged."""
        sizes = {f"{part}_size": getattr(self, f"{part}_size") for part in ("train", "val", "test")}
        return {"fingerprint": self.fingerprint, **sizes}


@dataclass(frozen=True, kw_only=True)
class DataInfo(Facts):
    """Of images with classes.

    Known before any pixel is read (from ``describe()``): the name, the classes, the channels and
    the image size.

    Attributes:
        classes: the class names; label ``i`` means ``classes[i]``.
        channels: channels of an image.
        image_size: (H, W) in pixels.
        mean, std: per channel, of the training pixels scaled to 0..1; empty while they are still
            to be measured (a folder of images before ``setup()``).
    """

    classes: tuple[str, ...]
    channels: int
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    unit: ClassVar[str] = "image"
    target: ClassVar[str | None] = "class"

    @property
    def size(self) -> tuple[int, ...]:
        """(H, W)."""
        return self.image_size

    def zeros(self, size: tuple[int, ...]) -> tuple[Tensor, ...]:
        """An image (1, C, H, W)."""
        return (torch.zeros(1, self.channels, *size),)

    def fills(self) -> dict[str, Any]:
        return {
            "num_classes": len(self.classes),
            "classes": len(self.classes),  # that a network is told
            "in_channels": self.channels,
            "image_size": list(self.image_size),
        }

    def meta(self) -> dict[str, Any]:
        return {
            "classes": list(self.classes),
            "mean": list(self.mean),
            "std": list(self.std),
            "image_size": list(self.image_size),
            "channels": self.channels,
        }


@dataclass(frozen=True, kw_only=True)
class MaskInfo(DataInfo):
    """Of images in which every pixel has a class, or none.

    In memory a mask has ``i`` for the class ``classes[i]`` and :data:`VOID` for no class.

    Attributes:
        values: what stands for each class in a mask file.
        void: what stands there for no class; None: every pixel has one.
    """

    values: tuple[int, ...]
    void: int | None

    target: ClassVar[str | None] = "mask"

    def meta(self) -> dict[str, Any]:
        return {**super().meta(), "mask_values": list(self.values), "mask_void": self.void}


@dataclass(frozen=True, kw_only=True)
class LabelsInfo(DataInfo):
    """Of images that have several of the classes each, or none."""

    target: ClassVar[str | None] = "labels"

    def meta(self) -> dict[str, Any]:
        return {**super().meta(), "several_labels": True}


@dataclass(frozen=True, kw_only=True)
class StringInfo(Facts):
    """Of strings that are turned into other strings.

    Attributes:
        alphabet: the characters of both.
        max_length: most tokens of an answer, END included.
    """

    alphabet: tuple[str, ...]
    max_length: int

    unit: ClassVar[str] = "string"
    target: ClassVar[str | None] = "text"

    @property
    def size(self) -> tuple[int, ...]:
        """(S, T): tokens of the source, and of the target as a decoder is given it."""
        return (self.max_length, self.max_length)

    def zeros(self, size: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Source ids (1, S) and target ids (1, T)."""
        source, target = size
        return torch.zeros(1, source, dtype=torch.int64), torch.zeros(1, target, dtype=torch.int64)

    def fills(self) -> dict[str, Any]:
        vocab = len(Alphabet(self.alphabet))
        return {
            "source_vocab": vocab,
            "target_vocab": vocab,
            "pad_id": PAD,
            "alphabet": list(self.alphabet),
            "max_length": self.max_length,
        }

    def meta(self) -> dict[str, Any]:
        return {"alphabet": list(self.alphabet), "max_length": self.max_length}


@dataclass(frozen=True, kw_only=True)
class LineInfo(Facts):
    """Of grey images of lines, and what is written in them.

    Attributes:
        alphabet: the characters.
        max_length: most tokens of an answer, END included.
        height: of the images, in pixels.
        width: of a long one, in pixels.
        mean, std: of the training pixels scaled to 0..1; empty before they are measured.
    """

    alphabet: tuple[str, ...]
    max_length: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    unit: ClassVar[str] = "line"
    target: ClassVar[str | None] = "text"

    @property
    def size(self) -> tuple[int, ...]:
        """(1, H, W, T): of the image, and tokens of the target as a decoder is given it."""
        return (1, self.height, self.width, self.max_length)

    def zeros(self, size: tuple[int, ...]) -> tuple[Tensor, ...]:
        """An image (1, 1, H, W), its width (1,) and target ids (1, T)."""
        *image, length = size
        ids = torch.zeros(1, length, dtype=torch.int64)
        return torch.zeros(1, *image), torch.tensor([image[-1]]), ids

    def fills(self) -> dict[str, Any]:
        return {
            "target_vocab": len(Alphabet(self.alphabet)),
            "pad_id": PAD,
            "in_channels": 1,
            "height": self.height,
            "alphabet": list(self.alphabet),
            "max_length": self.max_length,
        }

    def meta(self) -> dict[str, Any]:
        return {
            "alphabet": list(self.alphabet),
            "max_length": self.max_length,
            "height": self.height,
            "mean": list(self.mean),
            "std": list(self.std),
        }

"""How an exported network is called by other programs, and examples of such calls."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cvattn.checkpoint import Own
from cvattn.inference import GANGenerator, Generator, as_generator
from cvattn.inference.image_network import ImageNetwork, makes_images
from cvattn.inference.network import open_network
from cvattn.inference.segmenter import Segmenter, as_image_network

BATCHES = (1, 2, 5)


@dataclass(frozen=True, kw_only=True)
class Call:
    """How a network is called.

    Attributes:
        opened: the network, and what its checkpoint says of it.
        inputs: for each further input its name, what it is in words, and an example for so many
            images. The first one is images, or the noise that they are made from.
        output, gives: the name of what comes out, and what it is.
        classes: names of the classes, or of all outputs of a classifier.
    """

    opened: ImageNetwork
    inputs: Mapping[str, tuple[str, Callable[[int], Tensor]]]
    output: str
    gives: str
    classes: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Of the inputs, in order."""
        return ["noise" if self.from_noise else "images", *self.inputs]

    @property
    def from_noise(self) -> bool:
        """Whether images are made, in one call, rather than taken."""
        return isinstance(self.opened, GANGenerator)

    @property
    def fixed_size(self) -> bool:
        """Whether the network knows one size of images only: that of its positions, or its own."""
        return self.from_noise or hasattr(self.opened.network, "resample")

    def example(self, batch: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """What the network could be called with: images that look normalised, and the rest."""
        shape = self._shape(size)
        first = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch))
        return (first, *(make(batch) for _, make in self.inputs.values()))

    def _shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Of the first input, for one image."""
        if isinstance(self.opened, GANGenerator):
            return (self.opened.noise_dim,)
        return (self.opened.channels, *size)

    def examples(self, *, fixed: bool) -> Iterator[tuple[Tensor, ...]]:
        """Calls with each batch and size that is checked."""
        for size in self.sizes(fixed=fixed):
            for batch in BATCHES:
                yield self.example(batch, size)

    def sizes(self, *, fixed: bool) -> list[tuple[int, int]]:
        """That of training, an odd one and a longish one; maps of odd sizes are where pools differ.

        Of a network that halves its maps and doubles them again, none that it refuses.
        """
        height, width = self.opened.image_size
        step = getattr(self.opened.network, "size_multiple", 1)
        more = [(height + -(-5 // step) * step, width + -(-18 // step) * step), (2 * height, width)]
        return [(height, width)] if fixed else [(height, width), *more]

    def describe(self, open_sides: dict[int, str]) -> dict[str, Any]:
        """What a user of the file has to know, in plain values; it is stored in the file."""
        values = self.opened.values if isinstance(self.opened, Segmenter) else ()
        shape = ["batch", *self._shape(self.opened.image_size)]
        ways = {"preprocessing": "pixels scaled to 0..1, then (x - mean) / std for each channel"}
        if self.from_noise:
            ways = {
                "noise": "from a standard normal distribution",
                "postprocessing": "x * std + mean for each channel are pixels in 0..1",
            }
        return {
            "input": [open_sides.get(index, size) for index, size in enumerate(shape)],
            **{name: words for name, (words, _) in self.inputs.items()},
            **ways,
            "mean": list(self.opened.mean),
            "std": list(self.opened.std),
            "image_size": list(self.opened.image_size),
            "classes": list(self.classes),
            **({"mask_values": list(values)} if values else {}),
            self.output: self.gives,
        }


def open_call(path: str, own: Own | None = None) -> Call:
    """How the network of a checkpoint is called.

    Args:
        own: the ``network`` of :func:`cvattn.load`.

    Raises:
        InferenceError: there is none that can be used.
    """
    network = open_network(path, network=own)
    if makes_images(network):
        return _of_generator(as_generator(network, path))
    taken = as_image_network(network, path)
    of_pixels = ", height, width" if isinstance(taken, Segmenter) else ""
    return Call(
        opened=taken,
        inputs={},
        output="logits",
        gives=f"(batch, {len(taken.outputs)}{of_pixels})",
        classes=taken.outputs,
    )


def _of_generator(generator: Generator) -> Call:
    count = len(generator.classes)
    of_class = f"(batch,) int64: 0 to {count - 1} for a class"
    if isinstance(generator, GANGenerator):
        labels = {"labels": (of_class, lambda batch: torch.arange(batch) % count)}
        return Call(
            opened=generator,
            inputs=labels if generator.labelled else {},
            output="images",
            gives=f"(batch, {', '.join(map(str, (generator.channels, *generator.image_size)))})",
            classes=generator.classes,
        )
    inputs = {"times": ("(batch,) float32: 0 for noise to 1 for an image", _times)}
    if generator.labelled:
        words = f"{of_class}, {count} for none"
        inputs["labels"] = (words, lambda batch: torch.arange(batch) % (count + 1))
    return Call(
        opened=generator,
        inputs=inputs,
        output="velocity",
        gives="of the images' shape: step from noise (time 0) to images (time 1) along it",
        classes=generator.classes,
    )


def _times(batch: int) -> Tensor:
    """Some of all between noise and images."""
    return (torch.arange(batch) + 0.5) / batch

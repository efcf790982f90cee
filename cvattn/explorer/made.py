"""``explore_made(generator)``: where a GAN looks, in its own images and to judge them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import cvattn
from cvattn.core.modes import in_eval_mode
from cvattn.cost import count_parameters
from cvattn.explorer.content import Content
from cvattn.explorer.page import Page
from cvattn.explorer.weights import collect
from cvattn.inference import GANGenerator, GANWay


def explore_made(
    generator: GANGenerator,
    *,
    count: int = 4,
    classes: Sequence[int] = (),
    way: GANWay | None = None,
    layers: Sequence[str] | None = None,
) -> Page:
    """A page of images that a GAN makes, on which every place shows what it attends to.

    In the generator, which makes the image, and in the discriminator, which is then shown it: the
    picture of Zhang et al., "Self-Attention Generative Adversarial Networks" (2019), figures 1 and
    5, for any point.

    Args:
        generator: of :func:`cvattn.inference.open_generator`.
        count: images.
        classes: labels, one after the other and over again; () for all classes in turn.
        way: how they are made.
        layers: names of blocks; None = all.

    Raises:
        InferenceError: as in :meth:`GANGenerator.sample`.
        ValueError: the network has no attention, or none of that name.
    """
    way = GANWay() if way is None else way
    labels = generator.labels(count, classes)
    noise = generator.noise(count, way).to(generator.device)
    network: Any = generator.network
    left = iter(range(count))
    scores: list[float] = []

    def run(image: Tensor) -> Tensor:
        place = next(left)  # images come one at a time, in order
        told = labels[place : place + 1].to(generator.device) if generator.labelled else None
        made = network(noise[place : place + 1], told)
        score = network.score(made, told)
        scores.append(float(score))
        return score

    told = labels.to(generator.device) if generator.labelled else None
    with in_eval_mode(network), torch.no_grad():
        images = network(noise, told)
        weights = collect(network, images, layers, forward=run)
    captions: list[dict[str, Any]] = [
        {
            "name": f"{place}: score {score:+.2f}",
            "label": generator.classes[label] if label >= 0 else None,
            "guesses": [],
        }
        for place, (label, score) in enumerate(zip(labels.tolist(), scores, strict=True))
    ]
    facts = (
        f"{count_parameters(network):,} parameters",
        f"{count} images",
        way.words,
        f"cvattn {cvattn.__version__}, torch {torch.__version__.partition('+')[0]}",
    )
    content = Content(weights, generator.pixels(images), captions, [])
    return Page(content, f"What {type(network).__name__} looks at", facts)

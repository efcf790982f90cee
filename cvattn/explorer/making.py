"""``explore_making(generator)``: what the places of an image look at while it is made."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import cvattn
from cvattn.core.modes import in_eval_mode
from cvattn.cost import count_parameters
from cvattn.explorer.content import Content
from cvattn.explorer.page import Page
from cvattn.explorer.weights import collect
from cvattn.inference import FlowGenerator, InferenceError, Way

TIMES = (0.0, 0.2, 0.4, 0.6, 0.8)


class _Moment(NamedTuple):
    """One image on its way, and what it is to become."""

    image: Tensor  # (1, C, H, W)
    time: float
    label: int
    name: str


def explore_making(
    generator: FlowGenerator,
    *,
    count: int = 4,
    pixels: np.ndarray | None = None,
    known: np.ndarray | None = None,
    names: Sequence[str] | None = None,
    classes: Sequence[int] = (),
    times: Sequence[float] = TIMES,
    way: Way | None = None,
    rounds: int = 5,
    layers: Sequence[str] | None = None,
) -> Page:
    """A page of images on their way from noise, on which every place shows what it attends to.

    Args:
        generator: of :func:`cvattn.inference.open_generator`.
        count: images that are made.
        pixels, known: images to be completed instead, uint8 (B, C, H, W), and bool (B, H, W), True
            where a pixel stays: what do the places that are made anew look at?
        names: of the images; their numbers if None.
        classes: labels, one after the other and over again; () for all classes in turn, or, to
            complete images, for none.
        times: in [0, 1), at which an image is looked at; 0 is noise. The step of the way that
            begins there, or last before it, is the one that is shown.
        way, rounds: how they are made; see :meth:`FlowGenerator.sample` and
            :meth:`FlowGenerator.complete`.
        layers: names of blocks; None = all.

    Raises:
        InferenceError: times outside their range; one of ``pixels`` and ``known`` without the
            other; as in :class:`FlowGenerator`.
        ValueError: the network has no attention, or none of that name.
    """
    way = Way() if way is None else way
    if (pixels is None) != (known is None):
        raise InferenceError("pixels and known go together: what is completed, and what stays")
    if not times or not all(0.0 <= time < 1.0 for time in times):
        raise InferenceError(f"times={list(times)}: expected some, each in [0, 1)")
    wanted = sorted({int(time * way.steps + 1e-9) for time in times})
    seen: dict[int, Tensor] = {}

    def watch(images: Tensor, time: float) -> None:
        step = round(time * way.steps)
        if step in wanted:
            part = images.detach().clone()
            seen[step] = torch.cat([seen[step], part]) if step in seen else part

    if pixels is None or known is None:
        made, labels = generator.sample(count, classes=classes, way=way, watch=watch)
    else:
        labels = generator.labels_to_complete(len(pixels), classes).numpy()
        made = generator.complete(
            pixels, known, classes=classes, rounds=rounds, way=way, watch=watch
        )
    moments = [
        _Moment(
            images[place : place + 1],
            step / way.steps,
            int(label),
            f"image {place}" if names is None else str(names[place]),
        )
        for place, label in enumerate(labels)
        for step, images in sorted(seen.items())
    ]
    with in_eval_mode(generator.network):
        content = _content(generator, moments, layers)
    facts = (
        f"{count_parameters(generator.network):,} parameters",
        f"{len(made)} image{'s' * (len(made) > 1)} at {len(seen)} times each",
        way.words,
        f"cvattn {cvattn.__version__}, torch {torch.__version__.partition('+')[0]}",
    )
    return Page(content, f"What {type(generator.network).__name__} looks at on the way", facts)


def _content(
    generator: FlowGenerator, moments: Sequence[_Moment], layers: Sequence[str] | None
) -> Content:
    left = iter(moments)

    def run(image: Tensor) -> Any:
        moment = next(left)  # images come one at a time, in order
        arguments = [image, image.new_full((1,), moment.time)]
        if generator.labelled:
            arguments.append(torch.tensor([moment.label], device=image.device))
        return generator.network(*arguments)

    images = torch.cat([moment.image for moment in moments])
    weights = collect(generator.network, images, layers, forward=run)
    names = generator.classes
    captions: list[dict[str, Any]] = [
        {
            "name": f"t={moment.time:.2f}, {moment.name}",
            "label": names[moment.label] if 0 <= moment.label < len(names) else None,
            "guesses": [],
        }
        for moment in moments
    ]
    return Content(weights, generator.pixels(images), captions, [])

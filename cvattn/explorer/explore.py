"""``explore(model, images)``: a page that shows what each position attends to."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import cvattn
from cvattn.core.devices import device_of
from cvattn.core.modes import in_eval_mode
from cvattn.cost import count_parameters
from cvattn.explorer.answers import TOP, guesses_of, logits_of
from cvattn.explorer.classes import Heats, class_heats
from cvattn.explorer.content import Content
from cvattn.explorer.given import Given, given_images
from cvattn.explorer.lines import given_lines, of_lines
from cvattn.explorer.page import Page
from cvattn.explorer.pictures import Preprocess
from cvattn.explorer.weights import collect
from cvattn.inference import InferenceError, as_line_reader, open_network
from cvattn.inference.classifier import Guesses
from cvattn.models import Reader

Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Pictures = Image.Image | Sequence[Image.Image]


def explore(
    model: nn.Module | str | os.PathLike[str],
    images: Tensor | Sequence[Tensor] | Pictures | Files | None = None,
    *,
    preprocess: Preprocess | None = None,
    forward: Callable[[nn.Module, Tensor], Any] | None = None,
    class_names: Sequence[str] | None = None,
    words: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    grid: tuple[int, int] | None = None,
    targets: int = 3,
    count: int = 24,
) -> Page:
    """A page on which every position of an image shows what it attends to.

    Args:
        model: any network that :func:`cvattn.capture_attention` looks into, or a checkpoint: its
            path, or the name of a network that comes with the package.
        images: what is shown:

            - None: ``count`` validation images of the data that a checkpoint was trained on;
            - paths of image files and folders, PIL images, or pixels, uint8 (B, C, H, W), with
              ``preprocess``; a checkpoint needs none for paths and pixels: they are read and
              normalised as in its training (of one that reads lines, pixels are a list of uint8
              (H, W), each of its own width);
            - float (B, C, H, W), as the network takes them.
        preprocess: a PIL image -> what the network takes, float (C, H, W), such as torchvision's
            ``weights.transforms()`` or timm's ``create_transform``. The page shows images as they
            are after it, and takes back the normalising step that it finds in it.
        forward: (model, images) -> answer, for networks that take more than images; called with one
            image at a time, (1, C, H, W). ``model(images)`` if None. Guesses are shown of an answer
            that is, or has as ``logits``, (1, outputs).
        class_names: names of the outputs, the first ones at least.
        words: names of the keys that lie on no grid, such as the tokens of a text that the network
            is given beside the image: one list for all images.
        names: of the images; their places, or those of the files, if None.
        labels: what is on each image, if known.
        layers, grid: as in :func:`cvattn.capture_attention`: names of blocks, None = all; (H, W) of
            tokens whose grid is not found.
        targets: so many of an image's likeliest classes get a heat of their own, from gradients
            (:func:`cvattn.maps.attention_heat` with a target); 0 = none, 3 at most.
        count: validation images shown.

    Returns:
        The page, which appears in a notebook and is written by ``page.save(path)``. It names the
        blocks that it does not show: those whose queries lie on no grid.

    Raises:
        InferenceError: a ``ValueError``; the checkpoint or the images cannot be used.
        ValueError: the network has no attention, none of that name, or none on a grid; another
            number of words than keys.
        MemoryError: as in :func:`cvattn.capture_attention`.
    """
    if images is None and not (names is None and labels is None):
        raise ValueError("names and labels are of images that are given; there are none")
    if count < 1:
        raise ValueError(f"count={count} must be at least 1")
    if not 0 <= targets <= TOP:
        raise ValueError(f"targets={targets} must be in 0..{TOP}")
    network = model if isinstance(model, nn.Module) else open_network(model)
    source = type(network).__name__ if isinstance(model, nn.Module) else str(model)
    with in_eval_mode(network):
        if isinstance(network, Reader):
            for what, value in (
                ("preprocess", preprocess),
                ("forward", forward),
                ("class_names", class_names),
                ("words", words),
                ("grid", grid),
            ):
                if value is not None:
                    raise InferenceError(f"{what}= is not for networks that read lines")
            reader = as_line_reader(network, source)
            content = of_lines(reader, given_lines(reader, images, names, labels, count), layers)
        else:
            given = given_images(network, source, images, preprocess, names, labels, count)
            content = _content(
                network,
                given,
                forward or (lambda model, images: model(images)),
                given.outputs if class_names is None else class_names,
                words,
                layers,
                grid,
                targets,
            )
    pictures = content.pictures
    facts = (
        *(() if isinstance(model, nn.Module) else (source,)),
        f"{count_parameters(network):,} parameters",
        f"{len(pictures)} image{'s' * (len(pictures) > 1)} of "
        f"{pictures.shape[2]} × {pictures.shape[1]}",
        f"cvattn {cvattn.__version__}, torch {torch.__version__.partition('+')[0]}",
    )
    return Page(content, f"What {type(network).__name__} looks at", facts)


def _content(
    network: nn.Module,
    given: Given,
    forward: Callable[[nn.Module, Tensor], Any],
    class_names: Sequence[str] | None,
    words: Sequence[str] | None,
    layers: Sequence[str] | None,
    grid: tuple[int, int] | None,
    targets: int,
) -> Content:
    guesses: list[Guesses] = []

    def run(image: Tensor) -> Any:
        answer = forward(network, image)
        guesses.extend(guesses_of(logits_of(answer), class_names, several=given.several))
        return answer

    images, captions = given.inputs.to(device_of(network)), given.captions
    weights = collect(network, images, layers, grid=grid, forward=run, words=words)
    heats: list[Heats] = []
    if guesses and targets:
        top = min(targets, len(guesses[0]))
        for image in images.split(1):
            heats.append(
                class_heats(
                    network, image, weights.blocks, top, lambda x: forward(network, x), grid=grid
                )
            )
    for index, caption in enumerate(captions):
        caption["guesses"] = guesses[index] if guesses else []
    return Content(weights, given.pictures, captions, heats)

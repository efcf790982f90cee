"""``cvattn explore CHECKPOINT|timm/NAME [IMAGE...]``: a page of what positions look at."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cvattn.cli.arguments import find_images, parse_data, readable, say
from cvattn.cli.common import CommandError, Parser, add_checkpoint, own_network, shown
from cvattn.cli.hidden_part import PARTS, known_part
from cvattn.data.image_files import read_picture
from cvattn.explorer import Page, explore, explore_made, explore_making
from cvattn.inference import (
    FlowGenerator,
    GANGenerator,
    Generator,
    InferenceError,
    as_generator,
    as_image_network,
    as_line_reader,
    open_network,
)
from cvattn.inference.image_network import makes_images
from cvattn.inference.timm_network import TimmNetwork, open_timm
from cvattn.models import Reader

TIMM = "timm/"
_SHOWN = 24  # images of the data


def run(arguments: Sequence[str]) -> int:
    """The command. Returns 1 if an image could not be read (the others are shown), else 0."""
    args = _parser().read(arguments)
    if args.count is not None and args.count < 1:
        raise CommandError(f"--count {args.count} must be at least 1")
    count = _SHOWN if args.count is None else args.count
    settings = [text for text in args.images if text.startswith(("data=", "data."))]
    files = [text for text in args.images if text not in settings]
    if files and settings:
        raise CommandError(f"name either images or data, not both: {files[0]} and {settings[0]}")
    source, chosen, failed = shown(args.checkpoint), dict[str, Any](), False
    network: nn.Module
    if args.checkpoint.startswith(TIMM):
        if args.network is not None:
            raise CommandError(f"--network is for checkpoints; {TIMM}NAME says its network itself")
        if settings or not files:
            raise CommandError(f"{shown(args.checkpoint)}: name images, files or folders")
        opened, chosen, failed = _timm(args, files)
        network, source = opened.network, f"{source}, {shown(opened.weights)}"
    elif args.weights is not None or args.random_weights:
        option = "--random-weights" if args.random_weights else "--weights"
        raise CommandError(
            f"{option} is for networks of timm, {TIMM}NAME; a checkpoint has its own"
        )
    else:
        network = open_network(args.checkpoint, network=own_network(args))
        if makes_images(network):
            return _making(as_generator(network, args.checkpoint), args, files, settings)
        if args.mask is not None:
            raise CommandError("--mask is for networks that make images, and complete them")
        if files:
            chosen, failed = _from_files(network, args.checkpoint, files)
        elif not isinstance(network, Reader):
            chosen = _from_data(network, args.checkpoint, settings, count)
        elif settings:
            raise CommandError(f"{settings[0]}: of readers, name images of lines instead")
    try:
        page = explore(network, **chosen, layers=args.layer, count=count)
    except InferenceError:  # which has an exit code of its own
        raise
    except (ValueError, MemoryError) as error:
        raise CommandError(str(error)) from error
    _save(page, source, Path(args.output))
    return int(failed)


def _save(page: Page, source: str, output: Path) -> None:
    page = replace(page, facts=(source, *page.facts))
    try:
        page.save(output)
    except OSError as error:
        raise CommandError(shown(str(error))) from error
    counts = f"{len(page.content.pictures)} images, {len(page.content.weights.blocks)} blocks"
    print(f"{counts}, {len(page.html.encode()) / 1e6:.1f} MB: {shown(output)}")
    print("Open it in a browser; it needs no network and no server.")


def _making(generator: Generator, args: Any, files: Sequence[str], settings: Sequence[str]) -> int:
    """The page of a network that makes images; 1 if a file could not be read, else 0."""
    if settings:
        raise CommandError(f"{settings[0]}: this network makes images, and is shown none")
    if isinstance(generator, GANGenerator):
        return _made(generator, args, files)
    assert isinstance(generator, FlowGenerator)
    if bool(files) != bool(args.mask):
        raise CommandError(
            "IMAGE... and --mask go together: images to be completed, and what of them is made anew"
        )
    chosen: dict[str, Any] = {"count": 4 if args.count is None else args.count}
    failed = False
    if files:
        paths = find_images(files)
        found = [(path, pixels) for path, (pixels, _) in readable(paths, generator.read)]
        if not found:
            raise CommandError("none of the images could be read")
        failed = len(found) < len(paths)
        known = known_part(args.mask, generator.image_size)
        chosen = {
            "pixels": np.stack([pixels for _, pixels in found]),
            "known": np.repeat(known[None], len(found), axis=0),
            "names": [path.name for path, _ in found],
        }
    try:
        page = explore_making(generator, layers=args.layer, **chosen)
    except InferenceError:
        raise
    except (ValueError, MemoryError) as error:
        raise CommandError(str(error)) from error
    _save(page, shown(args.checkpoint), Path(args.output))
    return int(failed)


def _made(generator: GANGenerator, args: Any, files: Sequence[str]) -> int:
    """The page of a GAN."""
    if files or args.mask:
        raise CommandError(
            f"{shown(files[0]) if files else '--mask'}: a {type(generator.network).__name__} makes "
            "whole images only, and is shown its own"
        )
    try:
        page = explore_made(
            generator, layers=args.layer, count=4 if args.count is None else args.count
        )
    except InferenceError:
        raise
    except (ValueError, MemoryError) as error:
        raise CommandError(str(error)) from error
    _save(page, shown(args.checkpoint), Path(args.output))
    return 0


def _timm(args: Any, names: Sequence[str]) -> tuple[TimmNetwork, dict[str, Any], bool]:
    """The network, the images that can be read for :func:`explore`, whether some could not."""
    if args.weights is not None and args.random_weights:
        raise CommandError("--weights and --random-weights: give one of them")
    name = args.checkpoint.removeprefix(TIMM)
    opened = open_timm(name, weights=args.weights, random=args.random_weights)
    files = find_images(names)
    found = list(readable(files, lambda path: read_picture(path, 3)))
    if not found:
        raise CommandError("none of the images could be read")
    chosen = {
        "images": [picture for _, picture in found],
        "names": [path.name for path, _ in found],
        "preprocess": opened.preprocess,
        "class_names": opened.class_names,
        "forward": opened.forward,
    }
    return opened, chosen, len(found) < len(files)


def _from_files(
    network: nn.Module, checkpoint: str, names: Sequence[str]
) -> tuple[dict[str, Any], bool]:
    """The images that can be read, for :func:`explore`, and whether some could not."""
    files = find_images(names)
    if isinstance(network, Reader):
        found = list(readable(files, as_line_reader(network, checkpoint).read))
        images: Any = [torch.from_numpy(line) for _, line in found]
    else:
        ours = as_image_network(network, checkpoint)
        found = [(path, pixels) for path, (pixels, _) in readable(files, ours.read)]
        images = torch.from_numpy(np.stack([pixels for _, pixels in found])) if found else None
    if not found:
        raise CommandError("none of the images could be read")
    return {"images": images, "names": [path.name for path, _ in found]}, len(found) < len(files)


def _from_data(
    network: nn.Module, checkpoint: str, settings: Sequence[str], count: int
) -> dict[str, Any]:
    # Lightning takes seconds, and files need none of it.
    from cvattn.inference.own_data import choose_data, validation_images

    ours = as_image_network(network, checkpoint)
    data, notes = choose_data(ours, *parse_data(settings))
    for note in notes:
        say(note)
    pixels, names, labels = validation_images(ours, data, count)
    return {"images": torch.from_numpy(pixels), "names": names, "labels": labels}


def _parser() -> Parser:
    parser = Parser(
        prog="cvattn explore",
        description="Write one HTML page, for any browser and without network, in which every "
        "position of an image shows where it looks, in each block and head. Without IMAGE the page "
        "shows validation images of the data that the network was trained on; data=NAME and "
        "data.KEY=VALUE choose other data. Of a reader it shows where each character was read; of "
        "a network that makes images, some on their way from noise. "
        f"{TIMM}NAME is a network of timm with timm's weights, such as {TIMM}vit_tiny_patch16_224.",
    )
    add_checkpoint(parser, more=f"; or {TIMM}NAME")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="files, or folders of images")
    parser.add_argument("-o", "--output", default="explorer.html", help="explorer.html if not said")
    parser.add_argument(
        "--count", type=int, metavar="N", help="data images shown (24), or images made (4)"
    )
    parser.add_argument(
        "--mask",
        metavar="WHAT",
        help=f"of IMAGEs to be completed, what is made anew: {', '.join(PARTS)}, or a file that "
        "is white there",
    )
    parser.add_argument(
        "--layer", action="append", metavar="NAME", help="only this block; may be repeated"
    )
    parser.add_argument(
        "--weights", metavar="FILE", help=f"of {TIMM}NAME, or an installed package that has them"
    )
    parser.add_argument(
        "--random-weights", action="store_true", help=f"{TIMM}NAME as it is before any training"
    )
    return parser

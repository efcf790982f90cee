"""``cvattn explore CHECKPOINT [IMAGE...]``: a page that shows what each position looks at."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cvattn.cli.arguments import find_images, parse_data, readable, say
from cvattn.cli.common import CHECKPOINT_HELP, CommandError, Parser, shown
from cvattn.explorer import explore
from cvattn.inference import InferenceError, as_classifier, as_line_reader, open_network
from cvattn.models import Reader


def run(arguments: Sequence[str]) -> int:
    """The command. Returns 1 if an image could not be read (the others are shown), else 0."""
    args = _parser().read(arguments)
    if args.count < 1:
        raise CommandError(f"--count {args.count} must be at least 1")
    network = open_network(args.checkpoint)
    settings = [text for text in args.images if text.startswith(("data=", "data."))]
    files = [text for text in args.images if text not in settings]
    if files and settings:
        raise CommandError(f"name either images or data, not both: {files[0]} and {settings[0]}")
    failed, chosen = False, dict[str, Any]()
    if files:
        chosen, failed = _from_files(network, args.checkpoint, files)
    elif not isinstance(network, Reader):
        chosen = _from_data(network, args.checkpoint, settings, args.count)
    elif settings:
        raise CommandError(f"{settings[0]}: of readers, name images of lines instead")
    try:
        page = explore(network, **chosen, layers=args.layer, count=args.count)
    except InferenceError:  # which has an exit code of its own
        raise
    except (ValueError, MemoryError) as error:
        raise CommandError(str(error)) from error
    page = replace(page, facts=(shown(args.checkpoint), *page.facts))
    output = Path(args.output)
    try:
        page.save(output)
    except OSError as error:
        raise CommandError(shown(str(error))) from error
    counts = f"{len(page.content.pictures)} images, {len(page.content.weights.blocks)} blocks"
    print(f"{counts}, {len(page.html.encode()) / 1e6:.1f} MB: {shown(output)}")
    print("Open it in a browser; it needs no network and no server.")
    return int(failed)


def _from_files(
    network: nn.Module, checkpoint: str, names: Sequence[str]
) -> tuple[dict[str, Any], bool]:
    """The images that can be read, for :func:`explore`, and whether some could not."""
    files = find_images(names)
    if isinstance(network, Reader):
        found = list(readable(files, as_line_reader(network, checkpoint).read))
        images: Any = [torch.from_numpy(line) for _, line in found]
    else:
        classifier = as_classifier(network, checkpoint)
        found = [(path, pixels) for path, (pixels, _) in readable(files, classifier.read)]
        images = torch.from_numpy(np.stack([pixels for _, pixels in found])) if found else None
    if not found:
        raise CommandError("none of the images could be read")
    return {"images": images, "names": [path.name for path, _ in found]}, len(found) < len(files)


def _from_data(
    network: nn.Module, checkpoint: str, settings: Sequence[str], count: int
) -> dict[str, Any]:
    # Lightning takes seconds, and files need none of it.
    from cvattn.inference.own_data import choose_data, validation_images

    classifier = as_classifier(network, checkpoint)
    data, notes = choose_data(classifier, *parse_data(settings))
    for note in notes:
        say(note)
    pixels, names, labels = validation_images(classifier, data, count)
    return {"images": torch.from_numpy(pixels), "names": names, "labels": labels}


def _parser() -> Parser:
    parser = Parser(
        prog="cvattn explore",
        description="Write one HTML page, for any browser and without network, in which every "
        "position of an image shows where it looks, in each block and head. Without IMAGE the page "
        "shows validation images of the data that the network was trained on; data=NAME and "
        "data.KEY=VALUE choose other data. Of a reader it shows where each character was read.",
    )
    parser.add_argument("checkpoint", help=CHECKPOINT_HELP)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="files, or folders of images")
    parser.add_argument("-o", "--output", default="explorer.html", help="explorer.html if not said")
    parser.add_argument("--count", type=int, default=24, metavar="N", help="data images shown (24)")
    parser.add_argument(
        "--layer", action="append", metavar="NAME", help="only this block; may be repeated"
    )
    return parser

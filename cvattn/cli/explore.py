"""``cvattn explore CHECKPOINT [IMAGE...]``: a page that shows what each position looks at."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cvattn
from cvattn.cli.common import CHECKPOINT_HELP, CommandError, Parser, Trained, open_classifier, shown
from cvattn.cli.explorer import look, write_page
from cvattn.cli.images import ImageError, find_images, image_reader
from cvattn.cli.predict import predict
from cvattn.maps import attention_modules

_TOP = 3
_SPLIT = "val"  # the test images are for testing


def run(arguments: Sequence[str]) -> int:
    """The command. Returns 1 if an image could not be read (the others are shown), else 0."""
    args = _parser().read(arguments)
    if args.count < 1:
        raise CommandError(f"--count {args.count} must be at least 1")
    trained = open_classifier(args.checkpoint)
    if not attention_modules(trained.network):
        raise CommandError(f"{shown(args.checkpoint)}: the network has no attention to look at")
    settings = [text for text in args.images if text.startswith(("data=", "data."))]
    files = [text for text in args.images if text not in settings]
    if files and settings:
        raise CommandError(f"name either images or data, not both: {files[0]} and {settings[0]}")
    failed = False
    if files:
        pixels, captions, failed = _from_files(trained, files)
    else:
        pixels, captions = _from_data(trained, settings, args.count)
    for caption, guesses in zip(captions, predict(trained, pixels, _TOP), strict=True):
        caption["guesses"] = guesses
    try:
        found = look(trained.network, trained.normalise(pixels), args.layer)
    except (ValueError, MemoryError) as error:
        raise CommandError(str(error)) from error
    page = write_page(
        found,
        np.moveaxis(pixels, 1, -1),
        captions,
        title=f"What {type(trained.network).__name__} looks at",
        facts=_facts(trained, args.checkpoint, len(pixels)),
    )
    output = Path(args.output)
    try:
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot write {shown(output)}: {error}") from error
    size = len(page.encode()) / 1e6
    print(f"{len(pixels)} images, {len(found.blocks)} blocks, {size:.1f} MB: {shown(output)}")
    print("Open it in a browser; it needs no network and no server.")
    return int(failed)


def _from_files(
    trained: Trained, names: Sequence[str]
) -> tuple[np.ndarray, list[dict[str, Any]], bool]:
    read, failed = image_reader(trained), False
    images: list[np.ndarray] = []
    captions: list[dict[str, Any]] = []
    for path in find_images(names):
        try:
            pixels, _ = read(path)
        except ImageError as error:
            print(f"error: {shown(path)}: {error}", file=sys.stderr)
            failed = True
            continue
        images.append(pixels)
        captions.append({"name": path.name, "label": None})
    if not images:
        raise CommandError("none of the images could be read")
    return np.stack(images), captions, failed


def _from_data(
    trained: Trained, settings: Sequence[str], count: int
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Validation images of the data that the network was trained on, the same ones every time."""
    from cvattn.cli.data_choice import choose_data  # Lightning takes seconds, files need none of it

    data, notes = choose_data(trained, settings)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    try:
        data.prepare_data()
        data.setup("fit")
    except (ValueError, OSError) as error:
        raise CommandError(f"data: {error}") from error
    _, labels, places = data.example_images(count, split=_SPLIT)
    captions = [
        {"name": f"{_SPLIT} image {place}", "label": trained.outputs[label]}
        for label, place in zip(labels.tolist(), places.tolist(), strict=True)
    ]
    return np.asarray(data.split(_SPLIT).images[places]), captions


def _facts(trained: Trained, checkpoint: str, images: int) -> list[str]:
    count = sum(p.numel() for p in trained.network.parameters())
    return [
        shown(checkpoint),
        f"{count:,} parameters",
        f"{images} images of {trained.image_size[1]} × {trained.image_size[0]}",
        f"cvattn {cvattn.__version__}, torch {torch.__version__.partition('+')[0]}",
    ]


def _parser() -> Parser:
    parser = Parser(
        prog="cvattn explore",
        description="Write one HTML page, for any browser and without network, in which every "
        "position of an image shows where it looks, in each block and head. Without IMAGE the page "
        "shows validation images of the data that the network was trained on; data=NAME and "
        "data.KEY=VALUE choose other data.",
    )
    parser.add_argument("checkpoint", help=CHECKPOINT_HELP)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="files, or folders of images")
    parser.add_argument("-o", "--output", default="explorer.html", help="explorer.html if not said")
    parser.add_argument("--count", type=int, default=24, metavar="N", help="data images shown (24)")
    parser.add_argument(
        "--layer", action="append", metavar="NAME", help="only this block; may be repeated"
    )
    return parser

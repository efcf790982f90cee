"""``cvattn predict CHECKPOINT IMAGE...``: what the network says of each image, or its masks."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cvattn.cli.arguments import find_images, readable
from cvattn.cli.common import CommandError, Parser, add_checkpoint, own_network, shown
from cvattn.cli.predict_masks import write_masks
from cvattn.inference import (
    LineReader,
    as_classifier,
    as_line_reader,
    as_segmenter,
    open_network,
)
from cvattn.inference.classifier import Guesses
from cvattn.inference.image_network import names_pixels

BATCH = 64
_TOP = 3


def run(arguments: Sequence[str]) -> int:
    """The command. Returns 1 if a file could not be read (the others are predicted), else 0."""
    args = _parser().read(arguments)
    if args.top is not None and args.top < 1:
        raise CommandError(f"--top {args.top} must be at least 1")
    network = open_network(args.checkpoint, network=own_network(args))
    assert isinstance(network.meta, dict)
    if "alphabet" in network.meta:
        _refuse_folder(args)
        return _read_lines(as_line_reader(network, args.checkpoint), find_images(args.images))
    if names_pixels(network):
        segmenter = as_segmenter(network, args.checkpoint)
        return write_masks(segmenter, find_images(args.images), args)
    _refuse_folder(args)
    classifier = as_classifier(network, args.checkpoint)
    if classifier.several and args.top is not None:
        raise CommandError("--top is for networks that name one class; this one names all it sees")
    top = len(classifier.outputs) if classifier.several else args.top or _TOP
    rows: list[tuple[str, Guesses]] = []
    squeezed: list[str] = []
    files = find_images(args.images)
    for start in range(0, len(files), BATCH):
        names, images = [], []
        for path, (pixels, note) in readable(files[start : start + BATCH], classifier.read):
            names.append(shown(path))
            images.append(pixels)
            squeezed += [f"{shown(path)} ({note})"] if note else []
        if images:
            rows += zip(names, classifier.predict(np.stack(images), top), strict=True)
    if squeezed:
        height, width = classifier.image_size
        print(
            f"note: not of the shape {width} x {height} that the network takes, so squeezed: "
            f"{', '.join(squeezed[:3])}{f' and {len(squeezed) - 3} more' * (len(squeezed) > 3)}",
            file=sys.stderr,
        )
    if rows and classifier.several:
        _show_labels(rows)
    elif rows:
        _show(rows)
    return int(len(rows) < len(files))


def _refuse_folder(args: argparse.Namespace) -> None:
    if args.output is not None or args.overlays:
        raise CommandError(
            "-o and --overlays are for networks that name every pixel, whose masks are files; this "
            "one's answers are printed"
        )


def _read_lines(reader: LineReader, files: Sequence[Path]) -> int:
    """Print file, text and probability of each; 1 if a file could not be read, else 0."""
    width = max(len(shown(path)) for path in files)
    left = len(files)
    for path, pixels in readable(files, reader.read):
        text, probability = reader(pixels)
        print(f"{shown(path):<{width}}  {shown(text)}  {probability:.2%}")
        left -= 1
    return int(left > 0)


def _show_labels(rows: Sequence[tuple[str, Guesses]]) -> None:
    """What is likelier there than not, or else that there is nothing, and what is next to it."""
    width = max(len(name) for name, _ in rows)
    for name, guesses in rows:
        seen = [guess for guess in guesses if guess[1] > 0.5]
        text = ", ".join(f"{shown(label)} {share:.2%}" for label, share in seen or guesses[:1])
        print(f"{name:<{width}}  {text if seen else f'nothing (likeliest: {text})'}")


def _show(rows: Sequence[tuple[str, Guesses]]) -> None:
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table("file", *("is" if place == 0 else "or" for place in range(len(rows[0][1]))))
        for name, guesses in rows:
            # Text: a name such as [bold].png is no markup.
            table.add_row(Text(name), *(Text(f"{shown(c)} {p:.1%}") for c, p in guesses))
        Console().print(table)
        return
    rows = [(name, [(shown(c), p) for c, p in guesses]) for name, guesses in rows]
    widths = [max(len(name) for name, _ in rows)]
    widths += [max(len(row[1][i][0]) for row in rows) for i in range(len(rows[0][1]))]
    for name, guesses in rows:
        cells = [f"{c:<{w}} {p:7.2%}" for (c, p), w in zip(guesses, widths[1:], strict=True)]
        print("  ".join([f"{name:<{widths[0]}}", *cells]))


def _parser() -> Parser:
    parser = Parser(
        prog="cvattn predict",
        description="Print the likeliest classes of image files, with their probabilities. Images "
        "are resized to what the network takes; transparency becomes white. For networks trained "
        "on data=folder they are cut to shape as in training, for others squeezed. Of a network of "
        "several labels an image, those with more than 50 %. A reader prints "
        "what it reads in each line, and how probable that is. A network that names every pixel "
        "writes a mask for each image: a palette PNG of its name and size, with the values of the "
        "training masks. To it an image is shown at the scale of the training, whole.",
    )
    add_checkpoint(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, or folders of images")
    parser.add_argument("--top", type=int, metavar="N", help=f"classes shown ({_TOP})")
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", help="for masks (default: masks/ in the run's folder)"
    )
    parser.add_argument(
        "--overlays", action="store_true", help="with masks, images with their colours on them"
    )
    return parser

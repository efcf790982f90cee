"""``cvattn sample CHECKPOINT``: images made, or completed, by a network that learned to."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cvattn.cli.arguments import add_way, readable, way_of
from cvattn.cli.common import CommandError, Parser, add_checkpoint, own_network, shown
from cvattn.cli.hidden_part import PARTS, known_part
from cvattn.inference import FlowGenerator, GANGenerator, Generator, Way, open_generator
from cvattn.inference.grids import image_grid
from cvattn.system import did_you_mean
from cvattn.system.files import whole_file


def run(arguments: Sequence[str]) -> int:
    """The command. Leaves one picture of all images and, if asked for, a file of each."""
    args = _parser().read(arguments)
    if args.count is None:
        args.count = 4 if args.complete else 10 if args.between else 64
    _check(args)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = open_generator(args.checkpoint, device, network=own_network(args))
    classes = [_label(generator, name) for name in args.classes]
    way = way_of(args, generator)
    if args.complete:
        if not isinstance(generator, FlowGenerator):
            raise CommandError(
                f"--complete: a {type(generator.network).__name__} makes whole images only; "
                "networks that complete are trained with model=unet task=flow"
            )
        rows, names = _completed(generator, args, classes, way)
        sheet = image_grid(rows.reshape(-1, *rows.shape[2:]), rows.shape[1])
        made = rows[:, 2:].reshape(-1, *rows.shape[2:])
        names = [f"{name}_{number}" for name in names for number in range(rows.shape[1] - 2)]
    elif args.between:
        if not isinstance(generator, GANGenerator):
            raise CommandError(
                f"--between: a {type(generator.network).__name__} makes each image by itself; "
                "noise of a network of model=sagan_gan has images between"
            )
        made, labels = generator.between(args.count, classes=classes, steps=args.between, way=way)
        sheet = image_grid(made, args.between)
        names = [_name(generator, place, label) for place, label in enumerate(labels)]
    else:
        made, labels = generator.sample(args.count, classes=classes, way=way)
        sheet = image_grid(made, _columns(args.count, len(classes or generator.classes)))
        names = [_name(generator, place, label) for place, label in enumerate(labels)]
    target = Path(args.output)
    try:
        with whole_file(target) as file:
            sheet.save(file, format="PNG")
        if args.each:
            _write_each(Path(args.each), made, names)
    except OSError as error:
        raise CommandError(f"{error}") from error
    print(f"{shown(target)}: {_said(args, len(made))}{way.words}")
    if args.each:
        print(f"{shown(args.each)}/: each of them as a file of its own")
    return 0


def _check(args) -> None:
    for name in ("count", "rounds"):
        if getattr(args, name) < 1:
            raise CommandError(f"{name}={getattr(args, name)} must be at least 1")
    if args.between is not None and (args.between < 2 or args.complete):
        raise CommandError(
            f"--between {args.between}: expected at least 2 images, the ends of a way"
            if args.between < 2
            else "--between and --complete: give one of them"
        )
    if bool(args.complete) != bool(args.mask):
        raise CommandError(
            "--complete IMAGE... and --mask go together: the mask says what is to be made anew, "
            f"{', '.join(PARTS)}, or an image file that is white there"
        )
    if Path(args.output).suffix.lower() != ".png":
        raise CommandError(f"-o {shown(args.output)}: expected a file name that ends in .png")


def _label(generator: Generator, name: str) -> int:
    if not generator.labelled:
        raise CommandError("--class: this network is told no class: it was trained without")
    if name not in generator.classes:
        raise CommandError(
            f"--class {shown(name)}: no such class{did_you_mean(name, generator.classes)}"
        )
    return generator.classes.index(name)


def _completed(
    generator: FlowGenerator, args, classes: Sequence[int], way: Way
) -> tuple[np.ndarray, list[str]]:
    """(files, 2 + count, C, H, W): the image, what is left of it, and ``count`` ways to go on."""
    known = known_part(args.mask, generator.image_size)
    given = list(readable(map(Path, args.complete), generator.read))
    if len(given) < len(args.complete):
        raise CommandError("nothing was made", 1)
    rows = []
    for path, (pixels, squeezed) in given:
        if squeezed:
            print(f"note: {shown(path)} ({squeezed}) was squeezed", file=sys.stderr)
        repeated = np.repeat(pixels[None], args.count, axis=0)
        made = generator.complete(
            repeated,
            np.repeat(known[None], args.count, axis=0),
            classes=classes,
            rounds=args.rounds,
            way=way,
        )
        rows.append(np.concatenate([pixels[None], np.where(known, pixels, 128)[None], made]))
    return np.stack(rows).astype(np.uint8), [path.stem for path, _ in given]


def _columns(count: int, classes: int) -> int:
    """A column for each class, if they are told in turn; else a square."""
    return classes if 1 < classes <= 20 else round(count**0.5) or 1


def _name(generator: Generator, place: int, label: int) -> str:
    kind = f"_{generator.classes[label]}" if label >= 0 else ""
    return f"{place:05d}{kind}"


def _write_each(folder: Path, pixels: np.ndarray, names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for image, name in zip(pixels, names, strict=True):
        safe = "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in name)
        picture = image.transpose(1, 2, 0)
        Image.fromarray(picture if len(image) == 3 else picture[..., 0]).save(
            folder / f"{safe}.png"
        )


def _said(args, count: int) -> str:
    if args.complete:
        return f"each image, what of it was kept, and {args.count} completions of it; "
    if args.between:
        return f"{args.count} ways of {args.between} images from one noise to another, "
    return f"{count} images, "


def _parser() -> Parser:
    parser = Parser(
        prog="cvattn sample",
        description="Make images with a network that was trained to (model=unet, model=sagan_gan), "
        "or complete given ones. The same command gives the same images, bit for bit.",
    )
    add_checkpoint(parser)
    parser.add_argument(
        "-n",
        "--count",
        type=int,
        default=None,
        metavar="N",
        help="images (64); completions of each (4)",
    )
    parser.add_argument(
        "--class",
        dest="classes",
        action="append",
        default=[],
        metavar="NAME",
        help="of this class alone, or, given several times, of these in turn; else all in turn, "
        "and completions of none: they go by what is left of the image",
    )
    add_way(parser)
    parser.add_argument(
        "--between",
        type=int,
        metavar="N",
        help="of a GAN: rows of N images on the way from one noise to another, -n of them (10)",
    )
    parser.add_argument("--complete", nargs="+", metavar="IMAGE", help="files to be completed")
    parser.add_argument(
        "--mask",
        metavar="WHAT",
        help=f"what of them is made anew: {', '.join(PARTS)}, or a file that is white there",
    )
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="of each step of a completion (5)"
    )
    parser.add_argument("-o", "--output", default="samples.png", metavar="FILE.png")
    parser.add_argument("--each", metavar="FOLDER", help="also write each image as a file")
    return parser

"""``cvattn judge CHECKPOINT``: how good the images are that a network makes."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cvattn.cli.arguments import add_way, parse_data, say, way_of
from cvattn.cli.common import (
    CommandError,
    Parser,
    add_checkpoint,
    folder_beside,
    own_network,
    shown,
)
from cvattn.data import DataInfo
from cvattn.inference import Generator, open_classifier, open_generator
from cvattn.inference.grids import image_grid
from cvattn.inference.own_data import MODULES, choose_data, loaded
from cvattn.quality import (
    Judgement,
    Reference,
    Rung,
    draw_ladder,
    draw_neighbours,
    floor,
    judge,
    ladder,
    learn_from,
)
from cvattn.system import figures
from cvattn.system.files import whole_file, write_text

_MOST = 2000  # samples, if the data has as many test images


def run(arguments: Sequence[str]) -> int:
    """The command. Leaves ``judgement.json``, ``samples.png``, ``neighbours.png``, a ladder."""
    args = _parser().read(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = open_generator(args.checkpoint, device, network=own_network(args))
    way = way_of(args, generator)
    data, notes = choose_data(generator, *parse_data(args.data))
    for note in notes:
        say(note)
    info = loaded(data)
    classifier = _classifier(args.classifier, generator, device)
    if args.learn and not generator.labelled:
        raise CommandError("--learn: the network is told no class that could be learned")
    count = min(_MOST, info.test_size, info.train_size) if args.count is None else args.count
    folder = Path(args.output) if args.output else folder_beside(Path(args.checkpoint), "judgement")
    try:
        reference = Reference(data, count=count)
    except ValueError as error:
        raise CommandError(str(error)) from error
    errors = Console(stderr=True, highlight=False)
    errors.print(f"making {count:,} images: {way.words}", soft_wrap=True)
    pixels, told = generator.sample(count, way=way)
    errors.print("comparing them with the data's", soft_wrap=True)
    samples = torch.from_numpy(np.ascontiguousarray(pixels))
    rungs = ladder(reference) if args.ladder else [floor(reference)]
    judgement = judge(
        samples,
        reference,
        labels=None if classifier is None else torch.from_numpy(told),
        classifier=classifier,
        ladder=rungs,
    )
    learned = None
    if args.learn:
        errors.print("training small classifiers", soft_wrap=True)
        learned = learn_from(samples, torch.from_numpy(told), reference)
    content = {
        **judgement.as_dict(),
        "learned": None if learned is None else asdict(learned),
        "checkpoint": str(Path(args.checkpoint).absolute()),
        "classifier": args.classifier,
        "way": vars(way),
        "data_label": info.label,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "judgement.json", json.dumps(content, indent=2) + "\n")
        columns = len(info.classes) if len(info.classes) <= 20 else 10
        with whole_file(folder / "samples.png") as file:
            image_grid(pixels[: 10 * columns], columns).save(file, format="PNG")
    except OSError as error:
        raise CommandError(f"cannot write into {shown(folder)}: {error}") from error
    train = data.split("train").all_images()
    with figures.tolerate_failure("neighbours.png"):
        draw_neighbours(samples, judgement, train, folder / "neighbours.png")
    if args.ladder:
        title = f"{info.label}: {way.words}"
        with figures.tolerate_failure("ladder.png"):
            draw_ladder(rungs, folder / "ladder.png", samples=judgement.samples, title=title)
    _show(Console(highlight=False), judgement, rungs, info)
    if learned is not None:
        print(
            f"A small classifier that learns from these images knows {learned.samples:.2%} of the "
            f"test images; from as many training images {learned.training:.2%}."
        )
    print(f"{shown(folder)}/: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return 0


def _classifier(
    path: str | None, generator: Generator, device: str
) -> Callable[[Tensor], Tensor] | None:
    """Pixels, uint8 (B, C, H, W), to logits; None without a path."""
    if path is None:
        return None
    if not generator.labelled:
        raise CommandError("--classifier: the network is told no class that its images could be of")
    classifier = open_classifier(path, device)
    for what in ("classes", "channels", "image_size"):
        theirs, ours = getattr(classifier, what), getattr(generator, what)
        if theirs != ours:
            raise CommandError(
                f"--classifier {shown(path)}: its {what} are {theirs}, those of the images {ours}"
            )
    return lambda pixels: classifier.network(classifier.normalise(pixels.numpy()))


def _show(console: Console, judgement: Judgement, rungs: Sequence[Rung], info: DataInfo) -> None:
    first = judgement.samples.frechet
    table = Table(
        title=f"{judgement.count:,} images against {first.reference} images of {info.label}, "
        f"{judgement.draws} draws",
        title_justify="left",
    )
    table.add_column("", overflow="fold")
    for distance in judgement.samples:
        table.add_column(distance.name, justify="right", overflow="fold")
    for name, distances in (
        ("these images", judgement.samples),
        *((rung.name, rung.distances) for rung in rungs),
    ):
        table.add_row(name, *(f"{d.mean:.4g} ({d.low:.4g} to {d.high:.4g})" for d in distances))
    console.print(table)
    if first.note:
        console.print(first.note, soft_wrap=True)
    if judgement.accuracy is not None:
        accuracy = judgement.accuracy
        console.print(
            f"Taken for the class that was asked for: {accuracy.overall:.2%}; of the test images "
            f"{accuracy.test_overall:.2%}."
        )
    for found in (judgement.pixels, judgement.features):
        console.print(
            f"By {found.space}, {found.share:.1%} are as near to a training image as the nearest "
            f"{found.test_share:.1%} of the test images"
            + (": more than chance brings; look at neighbours.png." if found.alarm else "."),
            soft_wrap=True,
        )


def _parser() -> Parser:
    parser = Parser(
        prog="cvattn judge",
        usage="cvattn judge CHECKPOINT [data=NAME] [data.KEY=VALUE ...] [-n N] "
        "[--classifier CHECKPOINT] [--learn] [--ladder] [-o FOLDER]",
        description="Fréchet and kernel distance of made images from test images, by the features "
        "of EfficientNet-Lite0, beside those of training images; nearest training images. Without "
        "data=... the data that the checkpoint says it was trained on.",
    )
    add_checkpoint(parser)
    parser.add_argument("data", nargs="*", help=f"data={'|'.join(MODULES)}, and any argument of it")
    parser.add_argument(
        "-n", "--count", type=int, metavar="N", help=f"images ({_MOST:,}, or all test images)"
    )
    parser.add_argument(
        "--classifier", metavar="CHECKPOINT", help="says how many are of the class asked for"
    )
    parser.add_argument(
        "--learn",
        action="store_true",
        help="also what a small classifier learns from them, of the test images: half a minute",
    )
    parser.add_argument(
        "--ladder", action="store_true", help="also of training images made worse: takes minutes"
    )
    add_way(parser)
    parser.add_argument("-o", "--output", metavar="FOLDER", help="judgement/ in the run's folder")
    return parser

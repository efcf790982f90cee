"""``cvattn explore CHECKPOINT [IMAGE...]``: a page that shows what each position looks at."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

import cvattn
from cvattn.cli.common import CHECKPOINT_HELP, CommandError, Parser, open_network, shown
from cvattn.cli.explorer import Wanted, classified, read_lines, write_page
from cvattn.maps import attention_modules
from cvattn.models import Reader


def run(arguments: Sequence[str]) -> int:
    """The command. Returns 1 if an image could not be read (the others are shown), else 0."""
    args = _parser().read(arguments)
    if args.count < 1:
        raise CommandError(f"--count {args.count} must be at least 1")
    network = open_network(args.checkpoint)
    if not attention_modules(network):
        raise CommandError(f"{shown(args.checkpoint)}: the network has no attention to look at")
    settings = [text for text in args.images if text.startswith(("data=", "data."))]
    files = [text for text in args.images if text not in settings]
    if files and settings:
        raise CommandError(f"name either images or data, not both: {files[0]} and {settings[0]}")
    wanted = Wanted(network, args.checkpoint, files, settings, args.count, args.layer)
    reads = isinstance(network, Reader)
    try:
        content = read_lines(wanted) if reads else classified(wanted)
    except (ValueError, MemoryError) as error:
        raise CommandError(str(error)) from error
    page = write_page(
        content,
        title=f"What {type(network).__name__} looks at",
        facts=_facts(network, args.checkpoint, content.pictures),
    )
    output = Path(args.output)
    try:
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot write {shown(output)}: {error}") from error
    size = len(page.encode()) / 1e6
    counts = f"{len(content.pictures)} images, {len(content.look.blocks)} blocks"
    print(f"{counts}, {size:.1f} MB: {shown(output)}")
    print("Open it in a browser; it needs no network and no server.")
    return int(content.failed)


def _facts(network: nn.Module, checkpoint: str, pictures: np.ndarray) -> list[str]:
    count = sum(p.numel() for p in network.parameters())
    return [
        shown(checkpoint),
        f"{count:,} parameters",
        f"{len(pictures)} images of {pictures.shape[2]} × {pictures.shape[1]}",
        f"cvattn {cvattn.__version__}, torch {torch.__version__.partition('+')[0]}",
    ]


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

"""What ``cvattn predict`` does with a network that names every pixel: it writes masks."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cvattn.cli.arguments import readable
from cvattn.cli.common import CommandError, folder_beside, shown
from cvattn.data.image_files import pixels_of, read_picture
from cvattn.inference import Segmenter
from cvattn.inference.mask_pictures import mask_on_image, mask_picture
from cvattn.system.files import make_folder, whole_file


def write_masks(segmenter: Segmenter, files: Sequence[Path], args: argparse.Namespace) -> int:
    """A PNG for each image, of its name, size and the training masks' values; what is in it said.

    Returns 1 if a file could not be read, else 0.
    """
    folder = Path(args.output or folder_beside(Path(args.checkpoint), "masks"))
    targets = _targets(files, folder)
    if segmenter.channels not in (1, 3):
        raise CommandError(
            f"the network takes {segmenter.channels} channels; image files have 1 or 3"
        )
    left = len(files)
    try:
        make_folder(folder)
        if args.overlays:
            make_folder(folder / "overlays")
        for path, picture in readable(files, lambda p: read_picture(p, segmenter.channels)):
            classes = segmenter.predict(picture)
            target = targets[path]
            values = segmenter.code.encode(classes)
            with whole_file(target) as file:
                mask_picture(values).save(file, format="PNG")
            if args.overlays:
                pixels = np.moveaxis(pixels_of(picture), 0, -1)
                overlay = mask_on_image(pixels, values, np.full(values.shape, True))
                with whole_file(folder / "overlays" / target.name) as file:
                    Image.fromarray(overlay).save(file, format="PNG")
            print(f"{shown(target)}  {_shares(classes, segmenter)}")
            left -= 1
    except OSError as error:
        raise CommandError(shown(str(error))) from error
    return int(left > 0)


def _targets(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Where each mask is written; nothing that was given is written over."""
    found: dict[str, Path] = {}
    given = {path.absolute() for path in files}
    for path in files:
        target = folder / f"{path.stem}.png"
        if target.name in found:
            raise CommandError(
                f"{shown(found[target.name])} and {shown(path)} would have one mask, "
                f"{shown(target)}; write them into two folders, one after the other (-o FOLDER)"
            )
        if target.absolute() in given:
            raise CommandError(
                f"{shown(target)} is an image that was given, and its mask would take its place; "
                "choose another -o FOLDER"
            )
        found[target.name] = path
    return {path: folder / name for name, path in found.items()}


def _shares(classes: np.ndarray, segmenter: Segmenter) -> str:
    """The classes that are there, the largest first."""
    counts = np.bincount(classes.ravel(), minlength=len(segmenter.classes))
    order = [index for index in np.argsort(-counts, kind="stable") if counts[index]]
    return ", ".join(
        f"{shown(segmenter.classes[index])} {counts[index] / classes.size:.1%}" for index in order
    )

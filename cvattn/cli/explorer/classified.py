"""Images and what a classifier's attention makes of them: every position looks at every other."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from cvattn.cli.common import CommandError, Trained, as_classifier, shown
from cvattn.cli.explorer.content import Content, Wanted
from cvattn.cli.explorer.look import look
from cvattn.cli.images import find_images, image_reader, readable
from cvattn.cli.predict import predict

_TOP = 3
SPLIT = "val"  # the test images are for testing


def classified(wanted: Wanted) -> Content:
    """Of files, or of validation images of the data.

    Raises:
        CommandError: what cannot be had.
        ValueError, MemoryError: as in :func:`look`.
    """
    trained = as_classifier(wanted.network, wanted.checkpoint)
    failed = False
    if wanted.files:
        pixels, captions, failed = _from_files(trained, wanted.files)
    else:
        pixels, captions = _from_data(trained, wanted.settings, wanted.count)
    for caption, guesses in zip(captions, predict(trained, pixels, _TOP), strict=True):
        caption["guesses"] = guesses
    found = look(trained.network, trained.normalise(pixels), wanted.layers)
    return Content(found, np.moveaxis(pixels, 1, -1), captions, failed)


def _from_files(
    trained: Trained, names: Sequence[str]
) -> tuple[np.ndarray, list[dict[str, Any]], bool]:
    files = find_images(names)
    found = list(readable(files, image_reader(trained)))
    if not found:
        raise CommandError("none of the images could be read")
    captions = [{"name": path.name, "label": None} for path, _ in found]
    return np.stack([pixels for _, (pixels, _) in found]), captions, len(found) < len(files)


def _from_data(
    trained: Trained, settings: Sequence[str], count: int
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Validation images of the data that the network was trained on, the same ones every time."""
    from cvattn.cli.data_choice import choose_data  # Lightning takes seconds, files need none of it

    data, notes = choose_data(trained, settings)
    for note in notes:
        print(f"note: {shown(note)}", file=sys.stderr)
    try:
        data.prepare_data()
        data.setup("fit")
    except (ValueError, OSError) as error:
        raise CommandError(f"data: {error}") from error
    _, labels, places = data.example_images(count, split=SPLIT)
    captions = [
        {"name": f"{SPLIT} image {place}", "label": trained.outputs[label]}
        for label, place in zip(labels.tolist(), places.tolist(), strict=True)
    ]
    return np.asarray(data.split(SPLIT).images[places]), captions

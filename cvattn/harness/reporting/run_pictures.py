"""Which pictures a run ends with: the kind of task decides."""

from functools import singledispatch
from typing import cast

import pytorch_lightning as pl

from cvattn.core.devices import device_of
from cvattn.data import ImageDataModule, MaskDataModule
from cvattn.data.sequences.base import SequenceDataModule
from cvattn.harness.assemble import Run
from cvattn.harness.reporting.csv_log import CSVLog
from cvattn.harness.reporting.made_attention import draw_made_attention
from cvattn.harness.reporting.mask_pictures import draw_masks
from cvattn.harness.reporting.pictures import draw_attention, draw_curves
from cvattn.harness.reporting.reading_picture import draw_reading
from cvattn.harness.reporting.sample_pictures import draw_samples
from cvattn.system import figures
from cvattn.tasks import (
    ClassificationTask,
    GANTask,
    NetworkTask,
    SegmentationTask,
    SequenceTask,
)
from cvattn.tasks.making import MakingTask


def draw_run(run: Run, trainer: pl.Trainer) -> None:
    """``curves.png``; ``attention.png`` if there is attention to be drawn; samples, masks.

    What cannot be drawn is said in a line: the run goes on to its summary.
    """
    for logger in trainer.loggers:
        if isinstance(logger, CSVLog):
            with figures.tolerate_failure("curves.png"):
                rows = [logger.rows[epoch] for epoch in sorted(logger.rows)]
                title = f"{run.name} on {run.info.label}"
                draw_curves(rows, run.folder / "curves.png", title=title)
    run.network.eval()
    with figures.tolerate_failure("attention.png"):
        _draw_attention(run.task, run)
    if isinstance(run.task, MakingTask):
        with figures.tolerate_failure("samples.png"):
            data = cast(ImageDataModule, run.data)
            draw_samples(run.task, data, run.folder / "samples.png", rows=8)
    if isinstance(run.task, SegmentationTask):
        with figures.tolerate_failure("masks.png"):
            draw_masks(run.task, cast(MaskDataModule, run.data), run.folder / "masks.png")


@singledispatch
def _draw_attention(task: NetworkTask, run: Run) -> None:
    """Somebody's own task has none."""


@_draw_attention.register
def _(task: ClassificationTask, run: Run) -> None:
    data = cast(ImageDataModule, run.data)
    images, labels, _ = data.example_images(5, split="test")
    draw_attention(
        run.network,
        images.to(device_of(run.network)),
        labels.tolist(),
        data.describe().classes,
        run.folder / "attention.png",
        to_picture=data.denormalise,
    )


@_draw_attention.register
def _(task: GANTask, run: Run) -> None:
    draw_made_attention(task, cast(ImageDataModule, run.data), run.folder / "attention.png")


@_draw_attention.register
def _(task: SequenceTask, run: Run) -> None:
    data = cast(SequenceDataModule, run.data)
    draw_reading(task, data, run.folder / "attention.png")

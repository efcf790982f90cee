"""Images that a network makes while it learns to."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from cvattn.core.modes import in_eval_mode
from cvattn.data import ImageDataModule
from cvattn.harness.config.errors import ConfigError
from cvattn.inference import GANWay, Way, generator_of
from cvattn.inference.grids import image_grid
from cvattn.models.flow import Solver
from cvattn.system.figures import tolerate_failure
from cvattn.system.files import make_folder, whole_file
from cvattn.tasks import FlowTask, GANTask, NetworkTask

_COLUMNS = 10


class _Grid(pl.Callback):
    """What the pictures of both kinds have in common: when, where, and how they are written."""

    def __init__(self, dirpath: str, *, rows: int, every_n_epochs: int, way: Any) -> None:
        for name, value in (("rows", rows), ("every_n_epochs", every_n_epochs)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.dirpath = dirpath
        self.rows = rows
        self.every_n_epochs = every_n_epochs
        self.way = way

    def on_validation_epoch_end(
        self,
        trainer: pl.Trainer,
        pl_module: NetworkTask,  # type: ignore[override]
    ) -> None:
        epoch = trainer.current_epoch + 1
        last = epoch == trainer.max_epochs
        if trainer.sanity_checking or not (last or epoch % self.every_n_epochs == 0):
            return
        if trainer.is_global_zero:
            path = Path(self.dirpath) / f"epoch_{epoch:03d}.png"
            with tolerate_failure(path.name):
                make_folder(path.parent)
                draw_samples(
                    pl_module,
                    trainer.datamodule,  # type: ignore[attr-defined]
                    path,
                    rows=self.rows,
                    way=self.way,
                )


class SampleGrid(_Grid):
    """A picture after each validation, ``epoch_003.png``, of images made along a flow.

    They begin with the same noise each time, so one sees what training changes of them. With
    averaged weights, it is those that make them.

    Args:
        dirpath: the folder.
        rows: of images; a column for each of the first ten classes.
        every_n_epochs: of which there is a picture.
        steps, solver, guidance: see :class:`cvattn.inference.Way`.
    """

    needs_task = FlowTask

    def __init__(
        self,
        dirpath: str,
        *,
        rows: int = 4,
        every_n_epochs: int = 1,
        steps: int = 20,
        solver: Solver = "heun",
        guidance: float = 1.0,
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps={steps} must be at least 1")
        way = Way(steps=steps, solver=solver, guidance=guidance)
        super().__init__(dirpath, rows=rows, every_n_epochs=every_n_epochs, way=way)

    def setup(
        self,
        trainer: pl.Trainer,
        pl_module: FlowTask,  # type: ignore[override]
        stage: str,
    ) -> None:
        if self.way.guidance != 1.0 and not pl_module.classes:
            raise ConfigError(
                f"callbacks.samples.guidance={self.way.guidance} goes towards a class, and with "
                "model.classes=0 the network is told none"
            )


class MadeGrid(_Grid):
    """The same of images that a GAN makes.

    Args:
        dirpath, rows, every_n_epochs: as in :class:`SampleGrid`.
        truncation: see :class:`cvattn.inference.GANWay`.
    """

    needs_task = GANTask

    def __init__(
        self,
        dirpath: str,
        *,
        rows: int = 4,
        every_n_epochs: int = 1,
        truncation: float | None = None,
    ) -> None:
        way = GANWay(truncation=truncation)
        super().__init__(dirpath, rows=rows, every_n_epochs=every_n_epochs, way=way)


def draw_samples(
    task: NetworkTask, data: ImageDataModule, path: Path, *, rows: int, way: Any = None
) -> None:
    """A column of made images for each of the first ten classes -> a PNG.

    Args:
        task: whose network makes images.
        way: of its generator (:class:`cvattn.inference.Generator`).
    """
    info = data.describe()
    generator = generator_of(
        network=task.network,
        classes=info.classes,
        mean=info.mean,
        std=info.std,
        image_size=info.image_size,
        channels=info.channels,
        config={},
    )
    columns = min(_COLUMNS, len(info.classes))
    classes = range(columns) if generator.labelled else ()
    with in_eval_mode(task.network):
        pixels, _ = generator.sample(rows * columns, classes=classes, way=way)
    with whole_file(path) as file:
        image_grid(pixels, columns).save(file, format="PNG")

"""Images that a network makes while it learns to."""

from pathlib import Path

import pytorch_lightning as pl

from cvattn.core.modes import in_eval_mode
from cvattn.data import ImageDataModule
from cvattn.harness.config.errors import ConfigError
from cvattn.inference import Generator, Way
from cvattn.inference.grids import image_grid
from cvattn.models.flow import Solver
from cvattn.system.figures import tolerate_failure
from cvattn.system.files import make_folder, whole_file
from cvattn.tasks import FlowTask

_COLUMNS = 10


class SampleGrid(pl.Callback):
    """Writes a picture of made images after each validation: ``epoch_003.png``.

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
        for name, value in (("rows", rows), ("every_n_epochs", every_n_epochs), ("steps", steps)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.dirpath = dirpath
        self.rows = rows
        self.every_n_epochs = every_n_epochs
        self.way = Way(steps=steps, solver=solver, guidance=guidance)

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

    def on_validation_epoch_end(
        self,
        trainer: pl.Trainer,
        pl_module: FlowTask,  # type: ignore[override]
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


def draw_samples(
    task: FlowTask, data: ImageDataModule, path: Path, *, rows: int, way: Way | None = None
) -> None:
    """A column of made images for each of the first ten classes -> a PNG."""
    info = data.describe()
    generator = Generator(
        network=task.network,
        classes=info.classes,
        mean=info.mean,
        std=info.std,
        image_size=info.image_size,
        channels=info.channels,
        config={},
        labelled=task.classes > 0,
    )
    columns = min(_COLUMNS, len(info.classes))
    classes = range(columns) if generator.labelled else ()
    with in_eval_mode(task.network):
        pixels, _ = generator.sample(rows * columns, classes=classes, way=way)
    with whole_file(path) as file:
        image_grid(pixels, columns).save(file, format="PNG")

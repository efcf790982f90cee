"""What a run writes when it begins: not before the checkpoint that it continues has been read."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf

from cvattn.harness.assemble import Run
from cvattn.system.files import make_folder, write_text


class BeginRun(pl.Callback):
    """Writes ``config.yaml`` and tells the loggers, once training starts.

    A continuation that fails before leaves every file as it was. What is configured of a callback
    counts, also where it has come back from the checkpoint with another value.

    Args:
        run: that begins.
        configured: the callbacks of the configuration, each with its node.
    """

    def __init__(self, run: Run, configured: Mapping[pl.Callback, DictConfig]) -> None:
        self.run = run
        self.values: list[tuple[pl.Callback, dict[str, Any]]] = [
            (callback, {k: v for k, v in vars(callback).items() if k in node and v is not None})
            for callback, node in configured.items()
        ]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for callback, values in self.values:
            vars(callback).update(values)
        if not trainer.is_global_zero:
            return
        make_folder(self.run.folder)
        text = OmegaConf.to_yaml(OmegaConf.create(self.run.resolved))
        write_text(self.run.folder / "config.yaml", text)
        for logger in trainer.loggers:
            logger.log_hyperparams(self.run.resolved)

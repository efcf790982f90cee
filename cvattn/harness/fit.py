"""One run, from a composed configuration to a summary."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.loggers import WandbLogger

from cvattn.cost import count_parameters
from cvattn.harness.agreement import SameEverywhere
from cvattn.harness.assemble import Run, assemble
from cvattn.harness.averaging import AveragedWeights, averaged
from cvattn.harness.begin import BeginRun
from cvattn.harness.callbacks import (
    ReseedEachBatch,
    SavedContents,
    StopWhenNotFinite,
    ValidateAtTheLastStep,
)
from cvattn.harness.checkpoints import WholeCheckpoints
from cvattn.harness.config.errors import RunIsFinished
from cvattn.harness.config.resolve import build
from cvattn.harness.config.saved_run import run_folder
from cvattn.harness.reporting import panels
from cvattn.harness.reporting.console import plain_console, quiet
from cvattn.harness.reporting.csv_log import CSVLog
from cvattn.harness.reporting.progress import ProgressLines, Throughput
from cvattn.harness.reporting.run_pictures import draw_run
from cvattn.harness.reporting.summary import score_of, write_summary
from cvattn.harness.run_state import RunState
from cvattn.harness.stopping import Stopping, stoppable
from cvattn.harness.strategy import environment_for, others_answer, strategy_for
from cvattn.system.files import remove_leftovers
from cvattn.tasks import Criterion


def fit(cfg: DictConfig) -> float:
    """Train, validate, test once, and leave everything in ``cfg.run_dir``.

    Args:
        cfg: as composed from ``conf/``, with ``run_dir`` set.

    Returns:
        What sweeps maximise: the best validation accuracy (0 to 1), or what else the task is judged
        by (:attr:`cvattn.tasks.NetworkTask.criterion`), negative where less is better.

    Raises:
        ConfigError: before any data is loaded, or because the data cannot be read.
        TrainingStopped: the loss became NaN or infinite, or another process of the run is gone.
        CannotWrite: a file could not be written; what was there before is whole.
        SystemExit: 128 and its number after a signal: 130 after Ctrl-C, 143 after SIGTERM.
    """
    quiet()
    folder = Path(cfg.run_dir) if cfg.ckpt_path is None else run_folder(cfg.ckpt_path)
    with stoppable(folder) as stopping:
        try:
            return score_of(carry_out(assemble(cfg), stopping))
        except RunIsFinished as done:
            if cfg.get("resume") != "auto":
                raise
            plain_console().print(f"Nothing to do: {done}", soft_wrap=True)
            return score_of(done.summary)


def carry_out(run: Run, stopping: Stopping) -> dict[str, Any]:
    """Train, validate, test, draw and report.

    Returns:
        What ``summary.json`` has; in further processes its ``"criterion"`` alone.

    Raises:
        TrainingStopped: the loss became NaN or infinite, or another process of the run is gone.
    """
    with others_answer(run.cfg):
        return _carry_out(run, stopping)


def _carry_out(run: Run, stopping: Stopping) -> dict[str, Any]:
    console = plain_console()
    throughput = Throughput(run.info.size)
    trainer = _trainer(
        run,
        [
            stopping,
            RunState(finished=run.finished),
            throughput,
            StopWhenNotFinite(),
            ValidateAtTheLastStep(),
            ReseedEachBatch(run.cfg.seed),
            SavedContents(run.entry),
            ProgressLines(console, throughput, run.info.unit),
        ],
    )
    stopping.watch(trainer)
    facts = panels.facts(run, trainer)  # the code may change on disk while it runs
    if trainer.is_global_zero:
        remove_leftovers(run.folder)
        panels.show_start(console, run, trainer)
    if run.cfg.compile:
        run.network.compile()
    path = None if run.saved is None else run.saved.path
    trainer.fit(run.task, datamodule=run.data, ckpt_path=path, weights_only=True)
    stopping.check()
    metrics: dict[str, Any] = dict(trainer.callback_metrics)
    epochs = trainer.current_epoch
    # With the last weights: the test set has no say in which ones. With
    # trainer.limit_test_batches=0 there is nothing to say.
    tested = next(iter(trainer.test(run.task, datamodule=run.data, verbose=False)), {})
    further = {
        name: _part(trainer.test(run.task, dataloaders=loader, verbose=False)[0], "test/")
        for name, loader in (run.data.further_tests() if tested else {}).items()
    }
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()  # else it is open until the process ends, across a sweep
    criterion = run.task.criterion
    best = _best(trainer, metrics, criterion)
    summary: dict[str, Any] = {"criterion": criterion._asdict() | {"best": best}}
    if trainer.is_global_zero:
        run.network.float()  # a precision of "true" has converted it; what follows is in float32
        average = averaged(trainer.callbacks)  # type: ignore[attr-defined]
        if average is not None and (said := average.note(trainer.global_step)):
            run.notes.append(said)
        logs = [logger for logger in trainer.loggers if isinstance(logger, CSVLog)]
        evaluations = logs[0].column(criterion.metric) if logs else []
        run.notes += run.task.remarks(tested, evaluations)
        draw_run(run, trainer)
        summary |= {
            **facts,
            "weights": "averaged" if average is not None and average.begun else "trained",
            "val": _part(metrics, "val/"),
            "test": _part(tested, "test/"),
            **run.told,
            **({"further_tests": further} if further else {}),
            "gamma": _part(metrics, "gamma/"),
            "parameters": count_parameters(run.network),
            "epochs": epochs,
            "steps": trainer.global_step,
            **throughput.figures(run.training_macs_at, run.info.unit),
        }
        write_summary(run.folder / "summary.json", summary)
        panels.show_end(console, summary, run)
    return summary


def _trainer(run: Run, callbacks: list[pl.Callback]) -> pl.Trainer:
    nodes = run.cfg.get("callbacks") or {}
    configured = {build(node, f"callbacks.{key}"): node for key, node in nodes.items()}
    others = [*configured, *run.more_callbacks]
    # The averaged weights stay in place until every other callback has seen the validation.
    more = sorted(others, key=lambda callback: isinstance(callback, AveragedWeights))
    callbacks = [SameEverywhere(run), BeginRun(run, configured), *callbacks]
    loggers = [build(n, f"logger.{key}") for key, n in (run.cfg.get("logger") or {}).items()]
    own = [WholeCheckpoints(), *environment_for(run.cfg)]
    return build(
        run.cfg.trainer,
        "trainer",
        strategy=strategy_for(run.cfg, run.task),
        callbacks=[*callbacks, *more],
        logger=loggers,
        plugins=[*(run.cfg.trainer.get("plugins") or []), *own],
        default_root_dir=str(run.folder),
        enable_progress_bar=False,  # ours is among the callbacks
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in more),
        use_distributed_sampler=False,  # the loaders know their rank
    )


def _best(trainer: pl.Trainer, metrics: dict[str, Any], criterion: Criterion) -> float:
    best = [
        callback.best_model_score
        for callback in trainer.checkpoint_callbacks
        if isinstance(callback, ModelCheckpoint) and callback.monitor == criterion.metric
    ]
    known = [value for value in (*best, metrics.get(criterion.metric)) if value is not None]
    return _number(next(iter(known), None))


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _part(metrics: Any, prefix: str) -> dict[str, float]:
    return {k.removeprefix(prefix): float(v) for k, v in metrics.items() if k.startswith(prefix)}

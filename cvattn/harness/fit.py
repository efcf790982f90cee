"""One run, from a composed configuration to a summary."""

from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.loggers import WandbLogger

from cvattn.cost import count_parameters
from cvattn.harness import report
from cvattn.harness.assemble import Run, assemble
from cvattn.harness.averaging import AveragedWeights, averaged
from cvattn.harness.begin import BeginRun
from cvattn.harness.callbacks import (
    ReseedEachBatch,
    SavedContents,
    SayHowToContinue,
    StopWhenNotFinite,
    ValidateAtTheLastStep,
)
from cvattn.harness.drawing import draw_run
from cvattn.harness.progress import ProgressLines, Throughput
from cvattn.harness.settle import build
from cvattn.harness.shell import plain_console, quiet


def fit(cfg: DictConfig) -> float:
    """Train, validate, test once, and leave everything in ``cfg.run_dir``.

    Args:
        cfg: as composed from ``conf/``, with ``run_dir`` set.

    Returns:
        The best validation accuracy (0 to 1), which is what sweeps maximise.

    Raises:
        ConfigError: before any data is loaded, or because the data cannot be read.
        TrainingStopped: the loss became NaN or infinite.
        SystemExit: 130 after Ctrl-C, 143 after SIGTERM.
    """
    quiet()
    run = assemble(cfg)
    console = plain_console()
    throughput = Throughput()
    ending = SayHowToContinue(run.folder)
    trainer = _trainer(
        run,
        [
            throughput,
            StopWhenNotFinite(),
            ValidateAtTheLastStep(),
            ReseedEachBatch(run.cfg.seed),
            SavedContents(run.entry),
            ProgressLines(console, throughput, run.info.unit),
            ending,
        ],
    )
    facts = report.facts(run, trainer)  # the code may change on disk while it runs
    if trainer.is_global_zero:
        report.show_start(console, run, trainer)
    if run.cfg.compile:
        run.network.compile()
    try:
        trainer.fit(run.task, datamodule=run.data, ckpt_path=run.ckpt_path, weights_only=True)
        metrics: dict[str, Any] = dict(trainer.callback_metrics)
        epochs = trainer.current_epoch
        # With the last weights: the test set has no say in which ones. With
        # trainer.limit_test_batches=0 there is nothing to say.
        tested = next(iter(trainer.test(run.task, datamodule=run.data, verbose=False)), {})
        further = {
            name: _part(trainer.test(run.task, dataloaders=loader, verbose=False)[0], "test/")
            for name, loader in (run.data.further_tests() if tested else {}).items()
        }
    except SystemExit:
        # Lightning leaves with 1 after Ctrl-C and 0 after SIGTERM, and nothing after it runs.
        if ending.exit_code is None:
            raise
        raise SystemExit(ending.exit_code) from None
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()  # else it is open until the process ends, across a sweep
    best = _best(trainer, metrics)
    if trainer.is_global_zero:
        run.network.float()  # a precision of "true" has converted it; what follows is in float32
        average = averaged(trainer.callbacks)  # type: ignore[attr-defined]
        if average is not None and (said := average.note(trainer.global_step)):
            run.notes.append(said)
        draw_run(run, trainer)
        summary = {
            **facts,
            "weights": "averaged" if average is not None and average.begun else "trained",
            "val": _part(metrics, "val/"),
            "best_val_accuracy": best,
            "test": _part(tested, "test/"),
            **run.data.for_task,
            **({"further_tests": further} if further else {}),
            "gamma": _part(metrics, "gamma/"),
            "parameters": count_parameters(run.network),
            "epochs": epochs,
            "steps": trainer.global_step,
            **throughput.figures(run.macs_at, run.info.unit),
        }
        report.write_summary(run.folder / "summary.json", summary)
        report.show_end(console, summary, run)
    return best


def _trainer(run: Run, callbacks: list[pl.Callback]) -> pl.Trainer:
    nodes = run.cfg.get("callbacks") or {}
    configured = {build(node, f"callbacks.{key}"): node for key, node in nodes.items()}
    # The averaged weights stay in place until every other callback has seen the validation.
    more = sorted(configured, key=lambda callback: isinstance(callback, AveragedWeights))
    callbacks = [BeginRun(run, configured), *callbacks]
    loggers = [build(n, f"logger.{key}") for key, n in (run.cfg.get("logger") or {}).items()]
    return build(
        run.cfg.trainer,
        "trainer",
        callbacks=[*callbacks, *more],
        logger=loggers,
        default_root_dir=str(run.folder),
        enable_progress_bar=False,  # ours is among the callbacks
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in more),
        use_distributed_sampler=False,  # the loaders know their rank
    )


def _best(trainer: pl.Trainer, metrics: dict[str, Any]) -> float:
    best = [
        callback.best_model_score
        for callback in trainer.checkpoint_callbacks
        if isinstance(callback, ModelCheckpoint) and callback.monitor == "val/accuracy"
    ]
    return float(next(filter(None, best), metrics.get("val/accuracy", float("nan"))))


def _part(metrics: Any, prefix: str) -> dict[str, float]:
    return {k.removeprefix(prefix): float(v) for k, v in metrics.items() if k.startswith(prefix)}

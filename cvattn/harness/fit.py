"""One run, from a composed configuration to a summary."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from rich.console import Console
from torch import nn

from cvattn import checkpoint
from cvattn.cost import count_macs, count_parameters, training_pflop
from cvattn.data import ImageDataModule
from cvattn.harness import report
from cvattn.harness.callbacks import (
    ReseedEachBatch,
    SavedContents,
    SayHowToContinue,
    StopWhenNotFinite,
)
from cvattn.harness.csv_log import CSVLog
from cvattn.harness.decisions import Decision, decide
from cvattn.harness.errors import ConfigError, TrainingStopped
from cvattn.harness.pictures import draw_attention, draw_curves
from cvattn.harness.precision import probe_precision
from cvattn.harness.progress import ProgressLines, Throughput
from cvattn.harness.resume import run_folder, saved_config
from cvattn.harness.settle import build, settle

INTERRUPTED = 130  # what a shell reports after Ctrl-C


@contextmanager
def plain_errors() -> Iterator[None]:
    """Show what is the user's to mend as a message on stderr, and leave with a code."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        yield
    except ConfigError as error:
        console.print("error:", style="bold red", end=" ")
        console.print(str(error), markup=False)
        raise SystemExit(2) from None
    except TrainingStopped as error:
        console.print("stopped:", style="bold red", end=" ")
        console.print(str(error), markup=False)
        raise SystemExit(1) from None


def fit(cfg: DictConfig) -> float:
    """Train, validate, test once, and leave everything in ``cfg.run_dir``.

    Args:
        cfg: as composed from ``conf/``, with ``run_dir`` set.

    Returns:
        The best validation accuracy (0 to 1), which is what sweeps maximise.

    Raises:
        ConfigError: before any data is loaded.
        TrainingStopped: the loss became NaN or infinite.
        SystemExit: 130 after Ctrl-C.
    """
    _quiet()
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    overrides = list(hydra.overrides.task) if hydra else []
    choices = {k: v for k, v in hydra.runtime.choices.items() if "/" not in k} if hydra else {}
    ckpt_path, done = cfg.ckpt_path, 0
    if ckpt_path is not None:
        run_dir = run_folder(ckpt_path)
        cfg = saved_config(ckpt_path, overrides)
        cfg.run_dir = str(run_dir)
        saved = checkpoint.read(ckpt_path)
        choices, done = saved["cvattn"]["meta"]["choices"], saved["epoch"] + 1
    cfg = cfg.copy()
    cfg.ckpt_path = None  # the saved configuration starts from nothing
    if cfg.seed is None:
        drawn = decide(
            f"seed of {cfg.run_dir}", lambda: Decision(str(torch.seed() % 2**31), "drawn")
        )
        cfg.seed = int(drawn.choice)
    data, notes = settle(cfg, overrides)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    info = _load(data)
    network = build(cfg.model, "model")
    if cfg.task.get("channels_last"):
        network = network.to(memory_format=torch.channels_last)
    task = build(cfg.task, "task", network=network)
    example = torch.zeros(1, info.channels, *info.image_size)
    macs = count_macs(network, example)
    precision = _precision(cfg, network, example, info.train_size)
    cfg.trainer.precision = precision.choice
    run_dir = Path(cfg.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    resolved = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(resolved, dict)
    if done and done >= resolved["trainer"]["max_epochs"] > 0:
        raise ConfigError(
            f"the run in {run_dir.name} is complete after {done} epochs; to train on, set "
            f"trainer.max_epochs to more than {done}"
        )

    console = Console(highlight=False)
    throughput = Throughput()
    ending = SayHowToContinue(run_dir)
    meta = {
        "classes": list(info.classes),
        "mean": list(info.mean),
        "std": list(info.std),
        "image_size": list(info.image_size),
        "channels": info.channels,
        "config": resolved,
        "source_config": OmegaConf.to_container(cfg, resolve=False),
        "choices": dict(choices),
    }
    arguments = {k: v for k, v in resolved["model"].items() if not k.startswith("_")}
    callbacks = [
        throughput,
        StopWhenNotFinite(),
        ReseedEachBatch(cfg.seed),
        SavedContents(checkpoint.describe(network, arguments, meta)),
        ProgressLines(console, throughput),
        ending,
        *(build(node, f"callbacks.{key}") for key, node in (cfg.callbacks or {}).items()),
    ]
    loggers = [build(node, f"logger.{key}") for key, node in (cfg.logger or {}).items()]
    for logger in loggers:
        if isinstance(logger, CSVLog):
            logger.forget_from(done)
    trainer = build(
        cfg.trainer,
        "trainer",
        callbacks=callbacks,
        logger=loggers,
        default_root_dir=str(run_dir),
        enable_progress_bar=False,
        use_distributed_sampler=False,
    )
    name = choices.get("model", type(network).__name__)
    if trainer.is_global_zero:
        OmegaConf.save(OmegaConf.create(resolved), run_dir / "config.yaml")
        panel = {
            "network": f"{name}: {type(network).__name__}, {count_parameters(network):,} "
            f"parameters, {macs / 1e9:.3f} GMACs per image",
            "data": f"{report.pixels(info)}: {info.train_size:,} / {info.val_size:,} / "
            f"{info.test_size:,} images, from {info.source}",
            "device": f"{trainer.strategy.root_device.type} x {trainer.world_size}, "
            f"{precision.choice} ({precision.reason})",
            "run folder": report.short(run_dir),
        }
        if notes:
            panel["note"] = "\n".join(notes)
        report.show_start(console, panel, "continuing" if done else "training")

    if cfg.compile:
        network.compile()
    _train(trainer, task, data, ckpt_path, ending)
    metrics = dict(trainer.callback_metrics)
    epochs = trainer.current_epoch
    tested = trainer.test(task, datamodule=data, verbose=False)[0]
    best = _best(trainer, metrics)
    if not trainer.is_global_zero:
        return best

    label = report.pixels(info)
    summary: dict[str, Any] = {
        "model": name,
        "data": {
            "name": info.name,
            "label": label,
            "source": info.source,
            "official_pixels": info.official_pixels,
            "fingerprint": info.fingerprint,
            "train": info.train_size,
            "val": info.val_size,
            "test": info.test_size,
        },
        "val": {k[4:]: float(v) for k, v in metrics.items() if k.startswith("val/")},
        "best_val_accuracy": best,
        "test": {k[5:]: float(v) for k, v in tested.items() if k.startswith("test/")},
        "gamma": {k[6:]: float(v) for k, v in metrics.items() if k.startswith("gamma/")},
        "epochs": epochs,
        "minutes": throughput.seconds / 60,
        "images": throughput.images,
        "images_per_second": throughput.images_per_second,
        "parameters": count_parameters(network),
        "macs_per_image": macs,
        "pflop": training_pflop(macs, throughput.images),
        "seed": cfg.seed,
        "precision": precision.choice,
        "machine": report.machine(trainer.strategy.root_device),
        "processes": trainer.world_size,
        "versions": report.versions(),
        "commit": report.commit(),
        "overrides": overrides,
    }
    summary["files"] = _pictures(task, data, info, loggers, run_dir, f"{name} on {label}")
    report.write_summary(run_dir / "summary.json", summary)
    report.show_end(console, summary, run_dir, notes)
    return best


def _load(data: ImageDataModule) -> Any:
    """Download and read the data; what is wrong with it is the user's to mend."""
    try:
        data.prepare_data()
        data.setup("fit")
    except (ValueError, OSError) as error:
        raise ConfigError(f"data: {error}") from error
    return data.info


def _precision(
    cfg: DictConfig, network: nn.Module, example: torch.Tensor, train_size: int
) -> Decision:
    if cfg.trainer.precision != "auto":
        return Decision(str(cfg.trainer.precision), "as configured")
    cuda = cfg.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    size = min(int(cfg.data.get("batch_size") or 64), train_size, 256 if cuda else 64)
    images = torch.randn(size, *example.shape[1:], device="cuda" if cuda else "cpu")
    return decide(
        f"precision in {cfg.run_dir}",
        lambda: probe_precision(network, images, channels_last=bool(cfg.task.get("channels_last"))),
    )


def _train(
    trainer: pl.Trainer,
    task: pl.LightningModule,
    data: ImageDataModule,
    ckpt_path: str | None,
    ending: SayHowToContinue,
) -> None:
    try:
        trainer.fit(task, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    except SystemExit:
        # Lightning leaves with 1 after Ctrl-C, and nothing after it runs.
        if ending.interrupted:
            raise SystemExit(INTERRUPTED) from None
        raise


def _best(trainer: pl.Trainer, metrics: dict[str, Any]) -> float:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor == "val/accuracy":
            score = callback.best_model_score
            return float("nan") if score is None else float(score)
    return float(metrics.get("val/accuracy", float("nan")))


def _pictures(
    task: Any, data: ImageDataModule, info: Any, loggers: list, run_dir: Path, title: str
) -> list[str]:
    for logger in loggers:
        if isinstance(logger, CSVLog):
            rows = [logger.rows[epoch] for epoch in sorted(logger.rows)]
            draw_curves(rows, run_dir / "curves.png", title=title)
    images, labels, _ = data.example_images(5, split="test")
    network = task.network.eval()
    device = next(network.parameters()).device
    draw_attention(
        network,
        images.to(device),
        labels.tolist(),
        info.classes,
        run_dir / "attention.png",
        to_picture=data.denormalise,
    )
    written = ["config.yaml", "metrics.csv", "curves.png", "attention.png", "checkpoints"]
    return ["summary.json", *(name for name in written if (run_dir / name).exists())]


def _quiet() -> None:
    """Lightning's notices about devices and tips; the panel says what matters."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # We log once an epoch, whatever the interval for steps is.
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    # A continued run writes where it began.
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    # Between Lightning and recent torch, and mended by neither yet.
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")

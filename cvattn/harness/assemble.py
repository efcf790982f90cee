"""From a composed configuration to the parts of a run, ready for the trainer."""

import copy
import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from cvattn import checkpoint
from cvattn.cost import count_macs
from cvattn.data import DataInfo, DataModule, Facts
from cvattn.harness.config.checks import resolve_target
from cvattn.harness.config.decisions import Decision, decide
from cvattn.harness.config.errors import ConfigError
from cvattn.harness.config.own_network import place_of
from cvattn.harness.config.resolve import build, resolve
from cvattn.harness.config.saved_run import SavedRun
from cvattn.harness.config.trainer_checks import check_steps
from cvattn.harness.precision import probe_precision
from cvattn.harness.start import Start
from cvattn.tasks import NetworkTask

# For what a network takes from the images before training: a million patches and more.
_IMAGES_TO_FIT = 2000
# Packages behind a logger; one of them is enough.
_TRACKERS = {
    "pytorch_lightning.loggers.TensorBoardLogger": ("tensorboard", "tensorboardX"),
    "pytorch_lightning.loggers.WandbLogger": ("wandb",),
    "pytorch_lightning.loggers.MLFlowLogger": ("mlflow",),
}


@dataclass
class Run:
    """A run before it starts.

    Attributes:
        cfg: resolved, with its interpolations; ``resolved`` is the same as plain values.
        entry: what every checkpoint carries for ``cvattn.load`` and ``ckpt_path=``.
        macs: multiply-accumulates of the network for one sample of the data's typical size.
        saved: the run that is continued; None of a new one.
        finished: all of its training is behind it; what is left is to test, draw and report.
        notes: what was decided for the user, for the panel.
        commits: of the code; those that a continued run ran on before come first.
        told: what the data told the task.
        more_callbacks: that were made in Python.
        again: how a run from Python is continued; None: by ``train.py``.
    """

    name: str
    folder: Path
    cfg: DictConfig
    resolved: dict[str, Any]
    data: DataModule
    info: Facts
    network: nn.Module
    task: NetworkTask
    entry: dict[str, Any]
    macs: int
    precision: Decision
    saved: SavedRun | None
    finished: bool
    notes: list[str]
    overrides: list[str]
    commits: list[str | None]
    told: dict[str, Any]
    more_callbacks: tuple[pl.Callback, ...] = ()
    again: str | None = None

    def training_macs_at(self, size: tuple[int, ...]) -> int:
        """For one sample of that size: see :meth:`cvattn.tasks.NetworkTask.training_macs`."""
        network = copy.deepcopy(self.network)
        resample = getattr(network, "resample", None)
        if callable(resample):
            resample(size)
        return self.task.training_macs(network, *self.info.zeros(size))


def assemble(cfg: DictConfig) -> Run:
    """Check and resolve the configuration, load the data, build network and task.

    Raises:
        ConfigError: whatever is wrong with the configuration, before any data is loaded; data that
            cannot be read.
    """
    start = Start.of(cfg)
    cfg, saved = start.cfg, start.saved
    data, notes = resolve(cfg, start.given)
    if saved is not None:
        nodes = (cfg.get("callbacks") or {}).items()
        classes = [resolve_target(f"callbacks.{name}", node["_target_"]) for name, node in nodes]
        saved.check_continuable(cfg, classes)
    finished = start.is_trained()
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    _check_trackers(cfg)
    network = build(cfg.model, "model")
    told = _told(cfg, data, start.given)
    task = build(cfg.task, "task", network=network, **told)
    check_steps(task, cfg.trainer)
    given = {k: v for k, v in cfg.model.items() if not str(k).startswith("_")}
    check_network(task, data.describe(), built_with=given)
    changes = [text for text in start.given if text.startswith("data.")]
    resized = any(not text.startswith("data.root") for text in changes)
    ready = make_ready(cfg, data, task, saved, resized=resized)
    resolved = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    if saved is not None:
        notes += saved.notes_of_changes(resolved)
    meta = {
        **ready.info.meta(),
        **ready.info.identity(),
        "config": resolved,
        "source_config": OmegaConf.to_container(cfg, resolve=False),
        "choices": start.choices,
        "commits": start.commits,
        "overrides": start.overrides,
    }
    arguments = {k: v for k, v in resolved["model"].items() if not k.startswith("_")}
    maker = resolve_target("model", cfg.model._target_)
    chosen = start.choices.get("model", "own")
    return Run(
        name=maker.__name__ if chosen == "own" else chosen,
        folder=Path(cfg.run_dir),
        cfg=cfg,
        resolved=resolved,
        data=data,
        info=ready.info,
        network=network,
        task=task,
        entry=checkpoint.describe(network, arguments, meta, made_by=place_of(maker)),
        macs=ready.macs,
        precision=ready.precision,
        saved=saved,
        finished=finished,
        notes=[*notes, *ready.notes],
        overrides=start.overrides,
        commits=start.commits,
        told=told,
    )


@dataclass
class Ready:
    """What is known of a run once its data is read.

    Attributes:
        info: of the data.
        macs: as of :class:`Run`.
        precision: that was chosen, which is in the trainer's configuration from then on.
        notes: for the panel.
    """

    info: Facts
    macs: int
    precision: Decision
    notes: list[str]


def make_ready(
    cfg: DictConfig, data: DataModule, task: NetworkTask, saved: SavedRun | None, *, resized: bool
) -> Ready:
    """Load the data, and prepare the network for it.

    Args:
        resized: a continued run changes how much data there is.

    Raises:
        ConfigError: the optimiser cannot be made; the data cannot be read, or is not what it was.
    """
    network = task.network
    try:
        task.make_optimizers()
    except (ValueError, TypeError) as error:
        raise ConfigError(f"recipe.optimizer: {error}") from error
    info = _load(data)
    if saved is not None:
        saved.check_same_data(info, resized=resized)
    try:
        notes = task.meet(info)
    except ValueError as error:
        raise ConfigError(f"task: {error}") from error
    if _channels_last(task):
        network.to(memory_format=torch.channels_last)
    if saved is None:
        notes += _begin(network, data)
    macs = count_macs(network, *task.call_arguments(*info.zeros(info.size)))
    precision = _precision(cfg, task, info)
    cfg.trainer.precision = precision.choice
    return Ready(info, macs, precision, notes)


def _channels_last(task: NetworkTask) -> bool:
    return getattr(task, "memory_format", None) is torch.channels_last


def check_network(task: NetworkTask, info: Facts, *, built_with: Mapping[Any, Any]) -> None:
    """Raise ConfigError unless the network takes what the data has, and answers as it should."""
    two = [given.expand(2, *given.shape[1:]) for given in info.zeros(info.size)]
    try:
        task.check_network(*two)
    except ValueError as error:
        given = ", ".join(f"{key}={value}" for key, value in built_with.items())
        raise ConfigError(f"model: {error}; it was built with ({given})") from error


def _begin(network: Any, data: DataModule) -> list[str]:
    """What a network takes before its first step: weights of others, statistics of the images.

    Returns what is to be said of it.
    """
    notes = []
    if hasattr(network, "load_pretrained"):
        try:
            weights = network.load_pretrained()
        except ValueError as error:
            raise ConfigError(f"model: {error}") from error
        if weights is not None:
            notes.append(f"starts from weights: {weights}")
    info = data.describe()
    if hasattr(network, "set_normalisation") and isinstance(info, DataInfo):
        network.set_normalisation(info.mean, info.std)
    if hasattr(network, "fit_to_images"):
        network.fit_to_images(*data.example_inputs(_IMAGES_TO_FIT, split="train"))
    return notes


def _told(cfg: DictConfig, data: DataModule, given: Sequence[str]) -> dict[str, Any]:
    """What the data tells the task, of what this task can use."""
    cls = resolve_target("task", cfg.task._target_)
    takes = inspect.signature(cls).parameters
    for key in data.for_task:
        if key not in takes and any(text.startswith(f"data.{key}=") for text in given):
            raise ConfigError(f"data.{key}: {cls.__name__} has no use for it; leave it out")
    return {key: value for key, value in data.for_task.items() if key in takes}


def _check_trackers(cfg: DictConfig) -> None:
    """Refuse a logger whose package is not installed; Lightning says so after the data is read."""
    for name, node in (cfg.get("logger") or {}).items():
        packages = _TRACKERS.get(node["_target_"], ())
        if packages and not any(importlib.util.find_spec(package) for package in packages):
            raise ConfigError(
                f"logger.{name}: {packages[0]} is not installed: pip install -e '.[trackers]', or "
                f"pip install {packages[0]}"
            )


def _load(data: DataModule) -> Facts:
    """Download and read the data; what is wrong with it is a ConfigError."""
    try:
        data.prepare_data()
        data.setup("fit")
    except (ValueError, OSError) as error:
        raise ConfigError(f"data: {error}") from error
    return data.describe()


def _precision(cfg: DictConfig, task: NetworkTask, info: Facts) -> Decision:
    if cfg.trainer.precision != "auto":
        return Decision(str(cfg.trainer.precision), "as configured")
    cuda = cfg.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    size = min(int(cfg.data.get("batch_size") or 64), info.train_size, 256 if cuda else 48)
    inputs = [
        given.expand(size, *given.shape[1:]).to("cuda" if cuda else "cpu")
        for given in info.zeros(info.size)
    ]
    inputs = [torch.randn_like(x) if x.is_floating_point() else x for x in inputs]
    return decide(
        f"precision in {cfg.run_dir}",
        lambda: probe_precision(
            task.network,
            *task.call_arguments(*inputs),
            channels_last=_channels_last(task),
        ),
    )

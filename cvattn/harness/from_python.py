"""A whole run of a network and data that were made in Python, without Hydra."""

import inspect
import itertools
import time
from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import AdamW

import cvattn.data
import cvattn.tasks
from cvattn import checkpoint
from cvattn.data import DataModule
from cvattn.data.info import a_target
from cvattn.harness.assemble import Run, check_network, make_ready
from cvattn.harness.config.checks import GIVEN, check_config
from cvattn.harness.config.decisions import Decision, decide
from cvattn.harness.config.errors import ConfigError, RunIsFinished
from cvattn.harness.config.own_network import place_of
from cvattn.harness.config.paths import CONF, holds_a_run, short
from cvattn.harness.config.resolve import resolve_callbacks
from cvattn.harness.config.saved_run import SavedRun, last_of, open_from_python
from cvattn.harness.config.trainer_checks import check_trainer
from cvattn.harness.fit import carry_out
from cvattn.harness.provenance import commit
from cvattn.harness.reporting.console import plain_console, quiet
from cvattn.harness.start import is_trained
from cvattn.harness.stopping import stoppable
from cvattn.tasks import ClassificationTask, MultilabelTask, NetworkTask, SegmentationTask
from cvattn.tasks.optimisation import OptimizerFactory

_TASKS: dict[str | None, Any] = {
    "class": ClassificationTask,
    "labels": MultilabelTask,
    "mask": SegmentationTask,
}
_RUNS = itertools.count()  # of this process: further ones of a distributed run count alike


def fit(
    network: nn.Module | NetworkTask,
    data: DataModule,
    *,
    folder: str | PathLike[str] | None = None,
    epochs: int = 30,
    optimizer: OptimizerFactory | None = None,
    seed: int = 0,
    resume: bool = False,
    trainer: Mapping[str, Any] | None = None,
    callbacks: Sequence[pl.Callback] = (),
    args: Mapping[str, Any] | None = None,
    compile: bool = False,
    notes: str | None = None,
) -> dict[str, Any]:
    """Train, validate, test once, and leave everything in ``folder``: what ``train.py`` does.

    Panel, progress, checkpoints from which a stopped run goes on bit for bit, ``metrics.csv``,
    curves and attention pictures, ``summary.json``. The checkpoints open with
    ``cvattn.load(path, network=...)``, and in ``evaluate``, ``predict``, ``explore`` and ``export``
    with ``--network my_net:Net``.

    Args:
        network: images (B, C, H, W) -> logits (B, classes), or (B, classes, H, W) for data with
            masks; it is trained in place. Or a task that has one, with all that it can be told:
            ``ClassificationTask(network, num_classes=3, optimizer=..., mixup=0.2)``.
        data: such as ``cvattn.data.FolderData(root="my_images")``, or
            :class:`cvattn.data.LoaderData` of anyone's loaders.
        folder: of the run; None: a new one in ``outputs/``.
        epochs: passes over the training data.
        optimizer: takes parameter groups and returns the optimiser: ``partial(SGD, lr=0.1)``.
            None: AdamW, 1e-3, weight decay 0.05. Linear warm-up over a tenth of the steps, then
            cosine to 0; a task says others.
        seed: of all that is random in training; that of the data is the data's own.
        resume: go on with the run in ``folder``, if it has begun; if it is finished, say so.
        trainer: arguments of Lightning's Trainer, such as ``{"devices": 2, "strategy": "ddp",
            "gradient_clip_val": 1.0}``. The precision is chosen by a probe unless it is given.
        callbacks: beside those of every run.
        args: plain values that the network's class was built with, for
            ``cvattn.load(path, network=Net)``.
        compile: ``torch.compile`` the network.
        notes: a remark, kept in all that is written.

    Returns:
        What ``summary.json`` has; in further processes of a distributed run a part of it.

    Raises:
        ConfigError: what cannot be run, before data is read; data that cannot be read.
        TrainingStopped: the loss became NaN or infinite.
        CannotWrite: a file could not be written; what was there before is whole.
        SystemExit: 130 after Ctrl-C, 143 after SIGTERM.
    """
    quiet()
    if not isinstance(data, DataModule):
        raise ConfigError(
            f"data is a {type(data).__name__}; expected a data module of cvattn.data. Others come "
            "in through cvattn.data.LoaderData(train, val, test, classes=...), or LoaderData.of("
            "a_lightning_data_module, classes=...)"
        )
    if isinstance(network, NetworkTask) and optimizer is not None:
        raise ConfigError("optimizer: the task that was given has its own; leave it out")
    task = network if isinstance(network, NetworkTask) else _task(network, data, optimizer)
    place = _place(folder, type(task.network).__name__)
    saved = _saved(place, task, resume=resume)
    again = f"cvattn.fit(..., folder={short(place)!r}, resume=True), all else as before"
    with stoppable(place, again) as stopping:
        trained = {"max_epochs": epochs, **(trainer or {})}
        cfg = _configuration(task, data, place, trained, seed, compile, notes)
        try:
            if saved is not None:
                saved.check_continuable(cfg, [type(callback) for callback in callbacks])
            finished = saved is not None and is_trained(saved, cfg, told=bool(trainer))
        except RunIsFinished as done:
            complete = str(done).partition(";")[0]
            plain_console().print(f"Nothing to do: {complete}", soft_wrap=True)
            return done.summary
        pl.seed_everything(seed, workers=True, verbose=False)
        run = _run(cfg, data, task, saved, args or {})
        if not task.network.training:  # as cvattn.load leaves it; parts of it may be so on purpose
            task.network.train()
            run.notes.append("the network was in eval mode, and is trained in training mode")
        run.finished, run.more_callbacks, run.again = finished, tuple(callbacks), again
        return carry_out(run, stopping)


def _task(network: nn.Module, data: DataModule, optimizer: OptimizerFactory | None) -> NetworkTask:
    try:
        info = data.describe()
    except (ValueError, OSError) as error:
        raise ConfigError(f"data: {error}") from error
    if info.target not in _TASKS:
        raise ConfigError(
            f"{info.name} has {a_target(info.target)} for each {info.unit}: give a task in the "
            "place of the network, such as cvattn.tasks.SequenceTask(network, ...)"
        )
    task = _TASKS[info.target]
    takes = inspect.signature(task).parameters
    return task(
        network,
        num_classes=info.fills()["num_classes"],
        optimizer=optimizer or partial(AdamW, lr=1e-3, weight_decay=0.05),
        **{key: value for key, value in data.for_task.items() if key in takes},
    )


def _place(folder: str | PathLike[str] | None, name: str) -> Path:
    if folder is not None:
        return Path(folder).absolute()
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    chosen = decide(f"folder of run {next(_RUNS)}", lambda: Decision(f"{stamp}_{name}", ""))
    return Path("outputs").absolute() / chosen.choice


def _saved(place: Path, task: NetworkTask, *, resume: bool) -> SavedRun | None:
    """The run in the folder, if it is to be continued.

    Raises:
        ConfigError: there is one and it is not to be; it is of another network.
    """
    last = last_of(place)
    if not resume or last is None:
        if holds_a_run(place):
            raise ConfigError(
                f"{short(place)} holds a run already, and a new one would write over it: continue "
                "it with resume=True, or name another folder"
            )
        return None
    saved = open_from_python(last)
    here = {checkpoint.PREFIX + k: tuple(v.shape) for k, v in task.network.state_dict().items()}
    for key in sorted(here.keys() | saved.shapes.keys()):
        was, now = saved.shapes.get(key), here.get(key)
        if was != now:
            name = key.removeprefix(checkpoint.PREFIX)
            raise ConfigError(
                f"resume: the run in {short(place)} has another network: {name} was "
                f"{was or 'not there'} and is {now or 'not there'} now"
            )
    return saved


def _configuration(
    task: NetworkTask,
    data: DataModule,
    place: Path,
    trainer: Mapping[str, Any],
    seed: int,
    compile: bool,
    notes: str | None,
) -> DictConfig:
    """What ``train.py`` composes, of the parts that are not given as objects."""
    parts = {
        group: OmegaConf.load(CONF / group / f"{choice}.yaml")
        for group, choice in (("trainer", "auto"), ("callbacks", "default"), ("logger", "csv"))
    }
    for key in trainer:
        if key in GIVEN["trainer"]:
            raise ConfigError(f"trainer[{key!r}] is for {GIVEN['trainer'][key]} to say")
    parts["trainer"].update(trainer)
    cfg = OmegaConf.create(
        {
            **parts,
            "data": {"batch_size": data.batch_size},
            "seed": seed,
            "compile": compile,
            "ckpt_path": None,
            "run_dir": str(place),
            "distributed_timeout": OmegaConf.select(
                OmegaConf.load(CONF / "config.yaml"), "distributed_timeout"
            ),
            "notes": notes,
        }
    )
    resolve_callbacks(cfg, type(task), task.criterion)
    check_config(cfg)
    check_trainer(cfg)
    return cfg


def _target(made: object, room: ModuleType) -> str:
    """The name of its class, as ``conf/`` has it if it is one of ours."""
    cls = type(made)
    ours = getattr(room, cls.__name__, None) is cls
    return f"{room.__name__}.{cls.__name__}" if ours else place_of(cls).replace(":", ".")


def _run(
    cfg: DictConfig,
    data: DataModule,
    task: NetworkTask,
    saved: SavedRun | None,
    args: Mapping[str, Any],
) -> Run:
    check_network(task, data.describe(), built_with=args)
    ready = make_ready(cfg, data, task, saved, resized=False)
    resolved = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    told = {key: str(getattr(data, key)) for key in ("root",) if hasattr(data, key)}
    resolved["data"] |= {"_target_": _target(data, cvattn.data), **told}
    resolved["task"] = {"_target_": _target(task, cvattn.tasks)}
    resolved["recipe"] = {"optimizer": "\n".join(map(str, task.make_optimizers()))}
    commits = [] if saved is None else [each for each in saved.meta["commits"] if each != commit()]
    commits = [*commits, commit()]
    meta = {
        **ready.info.meta(),
        **ready.info.identity(),
        "config": resolved,
        "from_python": True,
        "commits": commits,
    }
    return Run(
        name=type(task.network).__name__,
        folder=Path(cfg.run_dir),
        cfg=cfg,
        resolved=resolved,
        data=data,
        info=ready.info,
        network=task.network,
        task=task,
        entry=checkpoint.describe(task.network, args, meta),
        macs=ready.macs,
        precision=ready.precision,
        saved=saved,
        finished=False,
        notes=[*ready.notes, *(saved.notes_of_changes(resolved) if saved else [])],
        overrides=[],
        commits=commits,
        told=data.for_task,
    )

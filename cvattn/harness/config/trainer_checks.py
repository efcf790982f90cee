"""What Lightning refuses late, or does in another way than it was asked to, said at once."""

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from cvattn.data.loader import check_world_size
from cvattn.harness.config.errors import ConfigError
from cvattn.harness.config.launchers import launch
from cvattn.system import did_you_mean

# Strategies of several processes, each with the whole network.
_TOGETHER = ("ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
STRATEGIES = ("auto", *_TOGETHER)
# Of others, by a part of their names, why a run does not have them.
_REFUSED = {
    **dict.fromkeys(
        ("spawn", "fork", "notebook"),
        "its processes are copies of this one, which a run does not survive",
    ),
    **dict.fromkeys(
        ("fsdp", "deepspeed", "model_parallel"),
        "each process has a part of the network only, and what a run does beside its steps "
        "(averaging, checkpoints for cvattn.load, pictures) needs it whole",
    ),
}

# Lightning's names for each precision.
_PRECISIONS = {
    "16": "16-mixed",
    "bf16": "bf16-mixed",
    "32": "32-true",
    "64": "64-true",
    **{name: name for name in ("auto", "16-mixed", "16-true", "bf16-mixed", "bf16-true")},
    **{name: name for name in ("32-true", "64-true")},
}


def check_trainer(cfg: DictConfig) -> None:
    """Raise ConfigError for a length, precision, strategy or batch that no run can have.

    The precision is written in Lightning's long form: ``bf16`` is ``bf16-mixed``.
    """
    _check_end(cfg.trainer)
    _check_precision(cfg.trainer)
    _check_strategy(cfg.trainer)
    _check_batch_norm(cfg.trainer)
    check_processes(cfg.trainer)
    for key, value in _numbers(OmegaConf.to_container(cfg, resolve=True)):
        if math.isnan(value):
            raise ConfigError(f"{key}=nan: expected a number")
    batch_size = cfg.data.get("batch_size")
    if isinstance(batch_size, int):
        try:
            check_world_size(batch_size, processes(cfg.trainer))
        except ValueError as error:
            raise ConfigError(f"data: {error}") from error


def check_steps(task: pl.LightningModule, trainer: DictConfig) -> None:
    """Raise ConfigError for what Lightning does not do where a task takes its steps itself."""
    if task.automatic_optimization:
        return
    for key, none in (("gradient_clip_val", None), ("accumulate_grad_batches", 1)):
        value = trainer.get(key)
        if value not in (None, none):
            raise ConfigError(
                f"trainer.{key}={value}: {type(task).__name__} has two optimisers and takes their "
                "steps itself, without it; leave it out"
            )
    if str(trainer.strategy).endswith("_unused_parameters_false"):
        raise ConfigError(
            f"trainer.strategy={trainer.strategy}: each step of {type(task).__name__} is of a part "
            "of the network, and leaves the other unused; use trainer.strategy=ddp"
        )


def processes(trainer: DictConfig) -> int:
    """How many processes train, by ``trainer.devices`` and ``trainer.num_nodes``."""
    devices = trainer.get("devices", "auto")
    gpus = torch.cuda.device_count() if on(trainer) == "cuda" else 1
    if isinstance(devices, str) and devices.isdecimal():
        devices = int(devices)
    if isinstance(devices, str) and devices not in ("auto", "-1"):
        here = len([part for part in devices.split(",") if part.strip()])
    elif devices in ("auto", "-1", -1, None):
        here = gpus
    else:
        here = devices if isinstance(devices, int) else len(devices)
    return max(1, here * int(trainer.get("num_nodes") or 1))


def on(trainer: DictConfig) -> str:
    """ "cuda", "mps", "cpu", or another kind of device that was named."""
    named = trainer.get("accelerator", "auto")
    if named in ("auto", "gpu"):
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu" if named == "auto" else "gpu"
    return str(named)


def _check_end(trainer: DictConfig) -> None:
    given = {key: trainer.get(key) for key in ("max_epochs", "max_steps")}
    for key, value in given.items():
        if value == 0 or (isinstance(value, int) and value < -1):
            raise ConfigError(f"trainer.{key}={value}: expected at least 1")
    if all(value in (None, -1) for value in given.values()):
        raise ConfigError(
            f"trainer.max_epochs={given['max_epochs']}: the learning-rate schedule needs an end; "
            "set trainer.max_epochs or trainer.max_steps to a positive number (trainer.max_time or "
            "callbacks=[default,early_stopping] may end the run before)"
        )


def _check_precision(trainer: DictConfig) -> None:
    given = str(trainer.get("precision", "auto"))
    if given not in _PRECISIONS:
        raise ConfigError(
            f"trainer.precision={given}: expected one of {', '.join(sorted(_PRECISIONS))}"
        )
    trainer.precision = precision = _PRECISIONS[given]
    device = on(trainer)
    if precision.startswith("16-") and device == "cpu":
        other = "bf16-mixed" if precision == "16-mixed" else "bf16-true"
        raise ConfigError(
            f"trainer.precision={given}: half precision is for a GPU, and this run is on a CPU, "
            f"where float16 is slow and leaves its range; use trainer.precision={other}, or "
            "32-true"
        )
    if precision == "64-true" and device == "mps":
        raise ConfigError(f"trainer.precision={given}: this device (mps) has no float64")


def strategy_of(trainer: DictConfig) -> str:
    """The strategy's name; ``auto`` with several processes is ``ddp``, as Lightning has it."""
    strategy = str(trainer.get("strategy") or "auto")
    return "ddp" if strategy == "auto" and processes(trainer) > 1 else strategy


def _check_strategy(trainer: DictConfig) -> None:
    trainer.strategy = strategy = strategy_of(trainer)
    if strategy in STRATEGIES:
        return
    for part, reason in _REFUSED.items():
        if part in strategy:
            raise ConfigError(f"trainer.strategy={strategy}: {reason}; use trainer.strategy=ddp")
    raise ConfigError(
        f"trainer.strategy={strategy}: expected one of {', '.join(STRATEGIES)}"
        f"{did_you_mean(strategy, STRATEGIES)}"
    )


def _check_batch_norm(trainer: DictConfig) -> None:
    if trainer.get("sync_batchnorm") and on(trainer) == "cpu":
        raise ConfigError(
            "trainer.sync_batchnorm=true: torch's synchronised batch norm is for GPUs, and this "
            "run is on a CPU; leave it out: each process then has the moments of its own part of "
            "a batch"
        )


def check_processes(trainer: DictConfig) -> None:
    """Raise ConfigError if other processes were started than the trainer will bring together."""
    launched = launch()
    nodes = int(trainer.get("num_nodes") or 1)
    # Of those that Lightning starts itself only the first one on a node is asked.
    if nodes > 1 and launched is None and "LOCAL_RANK" not in os.environ:
        raise ConfigError(
            f"trainer.num_nodes={nodes}: start the processes with torchrun or srun, or give the "
            f"same command on each node with MASTER_ADDR= (of the first), MASTER_PORT= (free "
            f"there) and NODE_RANK= (0 to {nodes - 1}) before it"
        )
    if launched is None or launched.count is None:
        return
    count, here = launched.count, launched.here
    asked = f"trainer=ddp trainer.devices={here}" + f" trainer.num_nodes={count // here}" * (
        count != here
    )
    told = f"{launched.by} started {count} processes"
    if strategy_of(trainer) not in _TOGETHER:
        raise ConfigError(
            f"{told}, and each would train a network of its own into one folder: add {asked} "
            "(where a run is continued, trainer.strategy=ddp for trainer=ddp), or start one process"
        )
    if processes(trainer) != count or nodes != count // here:
        raise ConfigError(f"{told}, but trainer.devices and num_nodes ask for others: give {asked}")


def _numbers(node: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(node, float):
        yield path, node
    items: Any = ()
    if isinstance(node, Mapping):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    for key, child in items:
        yield from _numbers(child, f"{path}.{key}" if path else str(key))

"""How the processes of a run come together: Lightning's strategy, and who has started them."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from omegaconf import DictConfig
from pytorch_lightning import LightningModule
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch.distributed import DistError

from cvattn.harness.config.errors import TrainingStopped
from cvattn.harness.config.launchers import launch

_UNUSED = "_find_unused_parameters_"


def strategy_for(cfg: DictConfig, task: LightningModule) -> str | Strategy:
    """The configured strategy; of several processes one that does not wait for ever.

    Where the task takes its steps itself, each is of a part of the network.

    Where another process is killed its connections close, and what waits for them ends. Where its
    whole machine is gone, or the network to it, nothing says so but the time.
    """
    name, _, unused = str(cfg.trainer.strategy).partition(_UNUSED)
    minutes = cfg.get("distributed_timeout")
    if name != "ddp":
        return name
    options: dict[str, Any] = {"find_unused_parameters": unused == "true"} if unused else {}
    if not task.automatic_optimization:
        options["find_unused_parameters"] = True
    if minutes is not None:
        options["timeout"] = timedelta(minutes=minutes)
    return DDPStrategy(**options)


def environment_for(cfg: DictConfig) -> list[ClusterEnvironment]:
    """What Lightning would not choose so by itself, under SLURM."""
    launched = launch()
    if launched is not None and launched.by == "srun":
        # Its own requeueing saves within a step, and silently goes on from that file.
        return [SLURMEnvironment(auto_requeue=False)]
    if SLURMEnvironment.detect() and (launched is None or launched.by == "hand"):
        return [LightningEnvironment()]  # one task on each node: Lightning starts what is wanted
    return []


@contextmanager
def others_answer(cfg: DictConfig) -> Iterator[None]:
    """Within it, what torch says of processes that are gone or silent is a message.

    Raises:
        TrainingStopped: another process is.
    """
    try:
        yield
    except RuntimeError as error:
        # gloo's errors have no class of their own; they begin with the file in which they arose.
        if not (isinstance(error, DistError) or "/gloo/" in str(error)):
            raise
        minutes = cfg.get("distributed_timeout")
        waited = "" if minutes is None else f" (distributed_timeout={minutes:g} minutes)"
        reason = str(error).strip().splitlines()[0]
        raise TrainingStopped(
            "another process of this run has ended, or did not answer in time"
            f"{waited}; if it has ended, it said why. torch says: {reason}"
        ) from error

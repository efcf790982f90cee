"""How the processes of a run come together: Lightning's strategy, and who has started them."""

from datetime import timedelta
from typing import Any

from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from omegaconf import DictConfig
from pytorch_lightning.strategies import DDPStrategy, Strategy

from cvattn.harness.config.launchers import launch

_UNUSED = "_find_unused_parameters_"


def strategy_for(cfg: DictConfig) -> str | Strategy:
    """The configured strategy; of several processes one that does not wait for ever.

    Where another process is killed its connections close, and what waits for them ends. Where its
    whole machine is gone, or the network to it, nothing says so but the time.
    """
    name, _, unused = str(cfg.trainer.strategy).partition(_UNUSED)
    minutes = cfg.get("distributed_timeout")
    if name != "ddp":
        return name
    options: dict[str, Any] = {"find_unused_parameters": unused == "true"} if unused else {}
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

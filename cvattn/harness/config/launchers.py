"""What started this process as one of several, and where they leave word for each other.

Four ways: torchrun; srun, one task for each process; a command given by hand on each node, whose
further processes Lightning starts; and Lightning alone, on one node. In the last the first process
decides before there are others. In the others there is a store (``torch.distributed.TCPStore``)
before training begins: torchrun's own, or one in the first process that the training's process
group uses after it.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from torch.distributed import DistNetworkError, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from cvattn.harness.config.errors import ConfigError

# For the others to start; a queue may let some of them wait.
PATIENCE = timedelta(minutes=10)
# Of launchers whose processes find no store: how many processes each says that it started.
_OTHERS = {
    "mpirun": "OMPI_COMM_WORLD_SIZE",
    "mpiexec": "PMI_SIZE",
    "jsrun": "JSM_NAMESPACE_SIZE",
    "something": "WORLD_SIZE",
}
# Names of jobs that Lightning takes for a shell that somebody works in.
_SHELLS = ("bash", "interactive")


@dataclass(frozen=True)
class Launch:
    """How this process was started as one of several that decide something together.

    Attributes:
        by: "torchrun", "srun" or "hand": once on each node, where Lightning starts the rest.
        rank: of this process among them.
        count: how many there are; None: the configuration says it (``trainer.num_nodes``).
        here: how many of them are on this node.
    """

    by: str
    rank: int
    count: int | None
    here: int


def launch() -> Launch | None:
    """Of this process; None: it decides alone, or was started by one that has decided.

    Raises:
        ConfigError: it was started in a way in which it would wait for ever, or train alone.
    """
    if is_by_torchrun():
        count = _number("WORLD_SIZE")
        return Launch("torchrun", _number("RANK"), count, _number("LOCAL_WORLD_SIZE", count))
    if (tasks := srun_tasks()) > 1:
        return _by_srun(tasks)
    if "LOCAL_RANK" in os.environ:  # by Lightning, in a process that has decided
        return None
    if all(name in os.environ for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")):
        return Launch("hand", _number("NODE_RANK"), None, 1)
    for program, variable in _OTHERS.items():
        if _number(variable, 1) > 1:
            raise ConfigError(
                f"{program} started {os.environ[variable]} processes ({variable}), each of which "
                "would train a network of its own; start them with torchrun or srun"
            )
    return None


def is_by_torchrun() -> bool:
    """Whether torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and _number("WORLD_SIZE", 1) > 1


def is_first() -> bool:
    """Whether this is the first process of its run, as far as the environment says it."""
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in names)


def srun_tasks() -> int:
    """How many tasks SLURM has in this job; 1 outside SLURM, and in a shell that it gave."""
    name = SLURMEnvironment.job_name()
    if name not in _SHELLS:
        return _number("SLURM_NTASKS", 1)
    if _number("SLURM_STEP_NUM_TASKS", 1) > 1:
        raise ConfigError(
            f"srun started {os.environ['SLURM_STEP_NUM_TASKS']} tasks in a job that is named "
            f"{name}, which Lightning takes for a shell; add --job-name=train to srun"
        )
    return 1


def _by_srun(tasks: int) -> Launch:
    if "SLURM_STEP_ID" not in os.environ:
        raise ConfigError(
            f"SLURM has {tasks} tasks for this job (SLURM_NTASKS), and this process was not "
            "started by srun: it would wait for the others. Put srun before python"
        )
    if "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise ConfigError(
            f"SLURM has {tasks} tasks and does not say how many on each node: ask for them with "
            "--nodes= and --ntasks-per-node= in place of --ntasks="
        )
    here = _number("SLURM_NTASKS_PER_NODE")
    return Launch("srun", _number("SLURM_PROCID"), tasks, here)


@functools.cache
def store() -> Store | None:
    """Where the processes of this run leave word for each other; None if this one decides alone.

    Raises:
        ConfigError: there is none, or nobody answers.
    """
    launched = launch()
    if launched is None:
        return None
    if launched.by != "torchrun":
        return PrefixStore("cvattn", _own_store(launched.rank, launched.count))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise ConfigError(
            "this torchrun shares no store, so its processes cannot agree on the data, the seed, "
            "the precision and the folder; start it without TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
        )
    place = os.environ["MASTER_ADDR"], _number("MASTER_PORT")
    agents = _reached(place, lambda: TCPStore(*place, is_master=False, timeout=PATIENCE))
    # torchrun may start all processes anew; what was decided before is not for them.
    return PrefixStore(f"cvattn/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", agents)


def _own_store(rank: int, count: int | None) -> Store:
    """In the first process, at the place where its process group will look for its own."""
    slurm = SLURMEnvironment(auto_requeue=False) if count is not None else None
    address = os.environ["MASTER_ADDR"] if slurm is None else slurm.main_address
    port = _number("MASTER_PORT") if slurm is None else slurm.main_port
    place = address, port
    return _reached(
        place,
        lambda: TCPStore(
            *place,
            is_master=rank == 0,
            timeout=PATIENCE,
            wait_for_workers=False,
            multi_tenant=True,
        ),
    )


def _reached(place: tuple[str, int], connect: Callable[[], Store]) -> Store:
    try:
        return connect()
    except (DistNetworkError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"no word from the first process at {place[0]}:{place[1]} (MASTER_ADDR, MASTER_PORT): "
            f"{reason}"
        ) from error


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name) or ("" if default is None else str(default))
    if not text.isdecimal():
        raise ConfigError(f"{name}={text!r} in the environment: expected a whole number")
    return int(text)

"""Choices that the machine makes for the user, made once and the same in every process of a run.

``data=auto``, ``precision=auto``, ``seed=null`` and the name of the run's folder are decided in the
first process. Further processes of a distributed run inherit the decision instead of measuring
again: through the environment where the first one starts them, and through torchrun's own store
where torchrun does.
"""

import functools
import json
import os
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from cvattn.harness.config.errors import ConfigError

_VARIABLE = "CVATTN_DECISIONS"


class Decision(NamedTuple):
    """What was chosen, and why, in words for the panel."""

    choice: str
    reason: str


def decide(name: str, make: Callable[[], Decision]) -> Decision:
    """The decision of that name: made already for this run, by whichever process, or now.

    Raises:
        ConfigError: the processes of this run have no way to agree.
    """
    made = json.loads(os.environ.get(_VARIABLE, "{}"))
    if name not in made:
        made[name] = list(make() if _store() is None else _agree(name, make))
        os.environ[_VARIABLE] = json.dumps(made)
    return Decision(*made[name])


def by_torchrun() -> bool:
    """Whether torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def _agree(name: str, make: Callable[[], Decision]) -> Decision:
    """The first process decides and leaves word; the others wait for it."""
    store = _store()
    assert store is not None
    if os.environ["RANK"] == "0":
        decision = make()
        store.set(name, json.dumps(list(decision)))
        return decision
    return Decision(*json.loads(store.get(name)))


@functools.cache
def _store() -> Store | None:
    """Where torchrun's processes leave word for each other; None without torchrun."""
    if not by_torchrun():
        return None
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise ConfigError(
            "this torchrun shares no store, so its processes cannot agree on the data, the seed, "
            "the precision and the folder; start it without TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
        )
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(*place, is_master=False, timeout=timedelta(minutes=10))
    # torchrun may start all processes anew; what was decided before is not for them.
    return PrefixStore(f"cvattn/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def decide_data(root: str) -> Decision:
    """Whether ``data=auto`` means "cifar10" or "digits" here."""

    def make() -> Decision:
        from cvattn.data import choose

        chosen = choose(root)
        return Decision(chosen.name, chosen.reason)

    return decide(f"data in {os.path.abspath(root)}", make)


def register_resolvers() -> None:
    """Resolvers for the name of the run folder, which is made before our code runs."""

    def data_name(choice: str, root: str | None) -> str:
        # Names the data in the folder: so that nobody takes a run on digits for one on CIFAR-10.
        return decide_data(root).choice if choice == "auto" and root is not None else choice

    def run_dir() -> str | None:
        if not HydraConfig.initialized():
            return None
        hydra = HydraConfig.get()  # only a job has an output folder; --cfg shows what it would be
        made = (
            None if OmegaConf.is_missing(hydra.runtime, "output_dir") else hydra.runtime.output_dir
        )
        return made or os.path.abspath(hydra.run.dir)

    OmegaConf.register_new_resolver("cvattn.data_name", data_name, replace=True)
    OmegaConf.register_new_resolver("cvattn.run_dir", run_dir, replace=True)
    OmegaConf.register_new_resolver(
        "cvattn.process", lambda: str(os.getpid()), replace=True, use_cache=True
    )

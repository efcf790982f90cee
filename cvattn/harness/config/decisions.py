"""Choices that the machine makes for the user, made once and the same in every process of a run.

``data=auto``, ``precision=auto``, ``seed=null``, the name of the run's folder and where it goes on
from are decided in the first process. Further processes of a distributed run inherit the decision
instead of measuring again: through the environment where the first one starts them, and
through a store where something else does (:mod:`cvattn.harness.config.launchers`).
"""

import json
import os
from collections.abc import Callable
from typing import NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from torch.distributed import DistNetworkError, DistStoreError

from cvattn.harness.config.errors import ConfigError
from cvattn.harness.config.launchers import PATIENCE, launch, store

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
        made[name] = list(_agree(name, make))
        os.environ[_VARIABLE] = json.dumps(made)
    return Decision(*made[name])


def _agree(name: str, make: Callable[[], Decision]) -> Decision:
    """The first process decides and leaves word; the others wait for it."""
    launched, word = launch(), store()
    if launched is None or word is None:
        return make()
    if launched.rank == 0:
        decision = make()
        word.set(name, json.dumps(list(decision)))
        return decision
    try:
        return Decision(*json.loads(word.get(name)))
    except (DistNetworkError, DistStoreError) as error:
        minutes = PATIENCE.total_seconds() / 60
        raise ConfigError(
            f"the first process of this run has not said what it chose ({name}) within "
            f"{minutes:.0f} minutes, or is gone: its own messages say why"
        ) from error


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

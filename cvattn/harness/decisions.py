"""Choices that the machine makes for the user, made once and the same in every process of a run.

``data=auto`` and ``precision=auto`` are decided in the first process. Further processes of a
distributed run inherit the decision through the environment instead of measuring again.
"""

import json
import os
from collections.abc import Callable
from typing import NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

_VARIABLE = "CVATTN_DECISIONS"


class Decision(NamedTuple):
    """What was chosen, and why, in words for the panel."""

    choice: str
    reason: str


def decide(name: str, make: Callable[[], Decision]) -> Decision:
    """The decision of that name: from this process or the one that started it, else made now."""
    made = json.loads(os.environ.get(_VARIABLE, "{}"))
    if name not in made:
        made[name] = list(make())
        os.environ[_VARIABLE] = json.dumps(made)
    return Decision(*made[name])


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
        # Names the data in the folder: nobody shall take a run on digits for one on CIFAR-10.
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

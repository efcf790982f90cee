"""What a run starts from: the configuration as composed, or that of the run it continues."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cvattn.harness.config.continuation import continued_config, new_overrides, now_chosen
from cvattn.harness.config.decisions import Decision, decide
from cvattn.harness.config.errors import ConfigError, RunIsFinished
from cvattn.harness.config.saved_run import SavedRun, last_of, open_training
from cvattn.harness.provenance import commit
from cvattn.harness.reporting.summary import read_summary


@dataclass
class Start:
    """A configuration that is not resolved yet, and where it comes from.

    Attributes:
        cfg: a copy, with a seed.
        given: overrides of this command line that say something new.
        overrides: all of the run: those that it was started and continued with before come first.
        choices: of groups.
        commits: of the code; those that a continued run ran on before come first.
        saved: the run that is continued; None of a new one.
    """

    cfg: DictConfig
    given: list[str]
    overrides: list[str]
    choices: dict[str, Any]
    commits: list[str | None]
    saved: SavedRun | None

    @classmethod
    def of(cls, composed: DictConfig) -> "Start":
        """What the composed configuration starts: with ``ckpt_path`` or ``resume`` a continuation.

        Raises:
            ConfigError: what is to be continued cannot be, or not so.
        """
        hydra = HydraConfig.get() if HydraConfig.initialized() else None
        given = new_overrides(hydra.overrides.task, (), {}) if hydra else []
        path = composed.ckpt_path
        if composed.get("resume") == "auto" and path is None:
            path = last_of(Path(composed.run_dir))
        if path is not None:
            return _continued(open_training(path), given, composed)
        chosen = hydra.runtime.choices.items() if hydra else ()
        choices = {key: value for key, value in chosen if "/" not in key}
        return cls(_with_seed(composed), given, given, choices, [commit()], None)

    def is_trained(self) -> bool:
        """As :func:`is_trained`."""
        # Such as early stopping; whoever sets something about it wants more.
        told = any(text.lstrip("+~").startswith(("trainer", "callbacks")) for text in self.given)
        return self.saved is not None and is_trained(self.saved, self.cfg, told=told)


def is_trained(saved: SavedRun, cfg: DictConfig, *, told: bool) -> bool:
    """Whether the run has no epoch or step left to be trained.

    Args:
        told: the user says something of its end, so one that ended early goes on.

    Raises:
        RunIsFinished: and all that follows has been done.
    """
    position = saved.position
    assert position is not None
    done = {
        "epochs": position.epoch + (position.closed and position.batch > 0),
        "steps": saved.global_step,
    }
    limits = {unit: cfg.trainer[f"max_{unit}"] for unit in done}  # null, -1: the other one
    reached = [unit for unit, limit in limits.items() if limit and 0 < limit <= done[unit]]
    ended = position.closed and saved.over and not told
    if not reached and not ended:
        return False
    if not position.closed:
        raise ConfigError(
            "the checkpoint was saved in the last step of the run, before the validation after "
            "it; continue from checkpoints/last.ckpt"
        )
    unit, folder = reached[0] if reached else "epochs", cfg.run_dir
    summary = read_summary(Path(folder) / "summary.json")
    if summary is not None and all(summary[unit] == count for unit, count in done.items()):
        raise RunIsFinished(
            f"the run in {folder} is complete after {done[unit]} {unit}; to train on, set "
            f"trainer.max_{unit} to more than {done[unit]}",
            summary,
        )
    return True


def _continued(saved: SavedRun, told: Sequence[str], composed: DictConfig) -> Start:
    said = saved.meta.get("overrides", [])
    given = new_overrides(told, said, saved.choices)
    now = commit()
    return Start(
        cfg=_with_seed(continued_config(saved, given, composed)),
        given=given,
        overrides=[*said, *given],
        choices=now_chosen(saved.choices, given),
        commits=[one for one in saved.meta.get("commits", []) if one != now] + [now],
        saved=saved,
    )


def _with_seed(cfg: DictConfig) -> DictConfig:
    cfg = cfg.copy()
    for key in ("ckpt_path", "resume"):  # the saved configuration starts from nothing
        OmegaConf.update(cfg, key, None, force_add=True)
    if cfg.seed is None:
        drawn = decide(f"seed of {cfg.run_dir}", lambda: Decision(str(torch.seed() % 2**31), ""))
        cfg.seed = int(drawn.choice)
    return cfg

"""Continuing a run: its own saved configuration, in its own folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from cvattn import checkpoint
from cvattn.harness.errors import ConfigError, did_you_mean
from cvattn.harness.paths import assigned


def resume_arguments(path: str) -> list[str]:
    """What to add to the command line so that a continued run writes where it began."""
    _entry(path)
    return [assigned("hydra.run.dir", run_folder(path))]


def saved_choices(path: str) -> dict[str, Any]:
    """The groups' choices of the run that wrote this checkpoint: ``{"model": "vit", ...}``."""
    return dict(_entry(path)["meta"]["choices"])


def run_folder(path: str) -> Path:
    """The folder of the run that wrote this checkpoint: the parent of ``checkpoints/``."""
    folder = Path(path).absolute().parent
    return folder.parent if folder.name == "checkpoints" else folder


def saved_config(path: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration in a checkpoint, with the command line's values on top.

    Choices of groups (``model=vit``) are part of what is continued and cannot be changed.
    """
    entry = _entry(path)
    cfg = OmegaConf.create(entry["meta"]["source_config"])
    OmegaConf.set_struct(cfg, True)
    parser = OverridesParser.create()
    for text in overrides:
        override = parser.parse_override(text)
        key, value = override.key_or_group, override.value()
        if key == "ckpt_path":
            continue
        node = OmegaConf.select(cfg, key, throw_on_missing=False)
        if isinstance(node, DictConfig) and isinstance(value, str):
            chosen = entry["meta"]["choices"].get(key)
            if value != chosen:
                raise ConfigError(
                    f"{key}={value}: the run in {path} has {key}={chosen}, and a continued run "
                    f"keeps it. Leave {key}= out, or start a new run without ckpt_path="
                )
            continue
        try:
            OmegaConf.update(cfg, key, value, force_add=override.is_add())
        except Exception as error:
            known = _flat(OmegaConf.to_container(cfg, resolve=False))
            raise ConfigError(
                f"{key}: the saved configuration has no such key{did_you_mean(key, known)}"
            ) from error
    return cfg


def _entry(path: str) -> dict[str, Any]:
    try:
        entry = checkpoint.read(path)["cvattn"]
    except (FileNotFoundError, checkpoint.CheckpointError) as error:
        raise ConfigError(f"ckpt_path: {error}") from error
    if "source_config" not in entry["meta"]:
        raise ConfigError(
            f"ckpt_path: {path} holds a network for use, without the state of a training run; "
            "continue from a checkpoint in a run's checkpoints/ folder"
        )
    return entry


def _flat(node: Any, path: str = "") -> list[str]:
    if not isinstance(node, dict):
        return [path]
    return [
        name
        for key, child in node.items()
        for name in _flat(child, f"{path}.{key}" if path else key)
    ]

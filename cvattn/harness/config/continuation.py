"""Continuing a run: its own saved configuration, in its own folder, with what was changed.

Every value of the command line acts, or is refused: the network, the data and the choices of
groups are what is continued; everything else is built anew from the changed configuration, and
what a checkpoint would put back over it (the optimiser's values) is set to it again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from cvattn.harness.config.checks import OPTIMIZERS, TOP_LEVEL
from cvattn.harness.config.composition import parse
from cvattn.harness.config.errors import ConfigError
from cvattn.harness.config.saved_run import SavedRun, keys_of
from cvattn.harness.config.trust import check_saved
from cvattn.system import did_you_mean

# Groups whose choice a continued run may change: nothing of theirs was trained.
_FREE = {"callbacks", "logger"}


def new_overrides(
    given: Sequence[str], before: Sequence[str], choices: Mapping[str, Any]
) -> list[str]:
    """The overrides of a continued run that say something new.

    Args:
        given: on the command line.
        before: on those that the run was started and continued with, in that order.
        choices: of groups, that the run was started with.
    """
    said = {_key(text): text for text in before}
    said = {key: f"{key}={choice}" for key, choice in choices.items()} | said
    last = {_key(text): text for text in given}.values()  # of a key that is given twice
    fresh = (text for text in last if _key(text) not in ("ckpt_path", "resume"))
    return [text for text in fresh if said.get(_key(text)) != text]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def continued_config(
    saved: SavedRun, overrides: Sequence[str], composed: DictConfig | None = None
) -> DictConfig:
    """The configuration in a checkpoint, with the command line's values on top.

    Args:
        saved: the run that is continued.
        overrides: as on the command line.
        composed: what ``conf/`` and the command line make alone: where the choice of ``callbacks=``
            or ``logger=`` is taken from, and what the user has said himself.

    Raises:
        ConfigError: a key that is not there; a change of what is continued (the network, the kind
            of optimiser, what it is judged by, choices of groups); a configuration that does more
            than a file's may.
    """
    path, choices, source = saved.path, saved.choices, saved.meta["source_config"]
    cfg = OmegaConf.create(source)
    OmegaConf.set_struct(cfg, True)
    for text in overrides:
        override = parse(text)
        key, value = override.key_or_group, override.value()
        if key in ("ckpt_path", "run_dir"):
            continue
        if override.is_delete():
            _delete(cfg, key, text)
        elif key in choices or (
            isinstance(source.get(key), dict) and isinstance(value, str | list)
        ):
            _choose(cfg, key, value, choices.get(key), path, composed)
        else:
            forced = override.is_add() or override.is_force_add() or key in TOP_LEVEL
            try:
                OmegaConf.update(cfg, key, value, force_add=forced)
            except Exception as error:
                known = keys_of(OmegaConf.to_container(cfg, resolve=False))
                raise ConfigError(
                    f"{key}: the saved configuration has no such key{did_you_mean(key, known)}"
                ) from error
    cfg.run_dir = str(saved.folder)
    check_saved(cfg, composed, saved.folder)
    before = OmegaConf.create(source)
    kept = ("model", "task.criterion", *(f"{name}._target_" for name in OPTIMIZERS))
    for key in kept:
        _check_kept(key, OmegaConf.select(before, key), OmegaConf.select(cfg, key), path)
    return cfg


def now_chosen(choices: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The groups' choices after a continued run has made its own."""
    named = {o.key_or_group: o.value() for o in map(parse, overrides) if not o.is_delete()}
    return {**choices, **{group: named[group] for group in _FREE & set(named)}}


def _delete(cfg: DictConfig, key: str, text: str) -> None:
    group, _, name = key.partition(".")
    if group not in _FREE or "." in name:
        raise ConfigError(
            f"{text}: of a continued run only callbacks and loggers can be taken out; give {key}= "
            "another value"
        )
    OmegaConf.update(cfg, key, None if name else {}, force_add=True, merge=False)


def _choose(
    cfg: DictConfig, key: str, value: Any, chosen: Any, path: str, composed: DictConfig | None
) -> None:
    if isinstance(chosen, ListConfig):
        chosen = OmegaConf.to_container(chosen)
    if value == chosen or [value] == chosen:
        return
    if key in _FREE and composed is not None:
        node = OmegaConf.to_container(composed[key], resolve=False) if key in composed else {}
        OmegaConf.update(cfg, key, node, force_add=True, merge=False)
        return
    way = f"Leave {key}= out, or start a new run without ckpt_path="
    if key == "trainer":
        way = "Give the values that differ: trainer.strategy=ddp trainer.devices=2, say"
    raise ConfigError(
        f"{key}={value}: the run in {path} has {key}={chosen}, and a continued run keeps it. {way}"
    )


def _check_kept(key: str, before: Any, now: Any, path: str) -> None:
    if before == now:
        return
    if isinstance(before, DictConfig) and isinstance(now, DictConfig):
        for name in map(str, [*before, *now]):
            _check_kept(f"{key}.{name}", before.get(name), now.get(name), path)
        return
    raise ConfigError(
        f"{key}={now}: the run in {path} has {before}, and a continued run keeps it. Leave {key}= "
        "out, or start a new run without ckpt_path="
    )

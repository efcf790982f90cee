"""Continuing a run: its own saved configuration, in its own folder, with what was changed.

Every value of the command line acts, or is refused: the network, the data and the choices of
groups are what is continued; everything else is built anew from the changed configuration, and
what a checkpoint would put back over it (the optimiser's values) is set to it again.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from cvattn import checkpoint
from cvattn.data import Facts
from cvattn.harness.averaging import AveragedWeights
from cvattn.harness.config.checks import TOP_LEVEL, resolve_target
from cvattn.harness.config.composition import parse
from cvattn.harness.config.errors import ConfigError
from cvattn.harness.config.paths import assigned
from cvattn.harness.config.trust import check_saved
from cvattn.system import did_you_mean

# Groups whose choice a continued run may change: nothing of theirs was trained.
_FREE = {"callbacks", "logger"}
_TRAINING = ("epoch", "global_step", "optimizer_states", "lr_schedulers", "loops")


def resume_arguments(path: str) -> list[str]:
    """What to add to the command line so that a continued run writes where it began."""
    _entry(path)
    return [assigned("hydra.run.dir", run_folder(path))]


def saved_choices(path: str) -> dict[str, Any]:
    """The groups' choices of the run that wrote this checkpoint: ``{"model": "vit", ...}``."""
    return dict(_entry(path)["meta"]["choices"])


def saved_keys(path: str) -> list[str]:
    """The keys of its configuration, of nodes and of values."""
    return _keys(_entry(path)["meta"]["source_config"])


def last_of(folder: Path) -> str | None:
    """The checkpoint that a run in the folder is continued from; None if it has none yet."""
    last = folder.absolute() / "checkpoints" / "last.ckpt"
    return str(last) if last.exists() else None


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
    fresh = (text for text in given if _key(text) not in ("ckpt_path", "resume"))
    return [text for text in fresh if said.get(_key(text)) != text]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def run_folder(path: str) -> Path:
    """The folder of the run that wrote this checkpoint: where its ``config.yaml`` is.

    Without one, the parent of ``checkpoints/``, or the checkpoint's own folder.
    """
    folder = Path(path).absolute().parent
    for place in (folder, folder.parent):
        config = place / "config.yaml"
        if config.is_file() and "\nrun_dir:" in config.read_text(errors="replace"):
            return place
    return folder.parent if folder.name == "checkpoints" else folder


def saved_state(path: str) -> dict[str, Any]:
    """The whole checkpoint, with the state of a training run in it."""
    _entry(path)
    saved = checkpoint.read(path)
    missing = [key for key in _TRAINING if key not in saved]
    if missing:
        raise ConfigError(
            f"ckpt_path: {path} has no {', '.join(missing)}: it was saved for use "
            "(save_weights_only), without the state of training; continue from a checkpoint that "
            "has it, such as checkpoints/last.ckpt of a run"
        )
    return saved


def check_continuable(saved: Mapping[str, Any], cfg: DictConfig) -> None:
    """Raise ConfigError if the resolved configuration cannot go on from this state."""
    if cfg.trainer.get("fast_dev_run"):
        raise ConfigError(
            "trainer.fast_dev_run tries a batch in a run of its own; a continued run would leave "
            "what came of that batch as its result. Leave ckpt_path= out"
        )
    nodes = (cfg.get("callbacks") or {}).items()
    classes = [resolve_target(f"callbacks.{name}", node["_target_"]) for name, node in nodes]
    if "averaging_state" in saved and not any(issubclass(c, AveragedWeights) for c in classes):
        raise ConfigError(
            "the weights in this checkpoint are averaged, and those that were trained stand beside "
            "them: the callback that averages (callbacks.ema) cannot be taken out"
        )


def saved_config(
    path: str, overrides: Sequence[str], composed: DictConfig | None = None
) -> DictConfig:
    """The configuration in a checkpoint, with the command line's values on top.

    Args:
        path: of the checkpoint.
        overrides: as on the command line.
        composed: what ``conf/`` and the command line make alone: where the choice of ``callbacks=``
            or ``logger=`` is taken from, and what the user has said himself.

    Raises:
        ConfigError: a key that is not there; a change of what is continued (the network, the kind
            of optimiser, choices of groups); a configuration that does more than a file's may.
    """
    meta = _entry(path)["meta"]
    cfg = OmegaConf.create(meta["source_config"])
    OmegaConf.set_struct(cfg, True)
    for text in overrides:
        override = parse(text)
        key, value = override.key_or_group, override.value()
        if key in ("ckpt_path", "run_dir"):
            continue
        if override.is_delete():
            _delete(cfg, key, text)
        elif key in meta["choices"] or (
            isinstance(meta["source_config"].get(key), dict) and isinstance(value, str | list)
        ):
            _choose(cfg, key, value, meta["choices"].get(key), path, composed)
        else:
            forced = override.is_add() or override.is_force_add() or key in TOP_LEVEL
            try:
                OmegaConf.update(cfg, key, value, force_add=forced)
            except Exception as error:
                known = _keys(OmegaConf.to_container(cfg, resolve=False))
                raise ConfigError(
                    f"{key}: the saved configuration has no such key{did_you_mean(key, known)}"
                ) from error
    cfg.run_dir = str(run_folder(path))
    check_saved(cfg, composed, run_folder(path))
    before = OmegaConf.create(meta["source_config"])
    for key in ("model", "recipe.optimizer._target_", "task.optimizer._target_"):
        _check_kept(key, OmegaConf.select(before, key), OmegaConf.select(cfg, key), path)
    return cfg


def now_chosen(choices: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The groups' choices after a continued run has made its own."""
    named = {o.key_or_group: o.value() for o in map(parse, overrides) if not o.is_delete()}
    return {**choices, **{group: named[group] for group in _FREE & set(named)}}


def check_same_data(path: str, info: Facts, *, resized: bool) -> None:
    """Raise ConfigError if the data is not what the run in ``path`` was trained on.

    Args:
        path: of the checkpoint.
        info: of the data as it is now, read.
        resized: the command line changes how much of it there is (``data.train_on_val``).
    """
    before = _entry(path)["meta"]
    now: dict[str, Any] = {**info.meta(), **info.identity()}
    sizes = {"train_size", "val_size", "test_size"}
    for key, value in now.items():
        if key in before and before[key] != value and not (resized and key in sizes):
            raise ConfigError(
                f"data: {key.replace('_', ' ')} of {info.name} ({info.source}) was "
                f"{_short(before[key])} when the run in {path} was trained, and is "
                f"{_short(value)} now. A continued run needs the same data: put it back, name its "
                "place with data.root=, or start a new run without ckpt_path="
            )


def notes_of_changes(path: str, now: Mapping[str, Any]) -> list[str]:
    """What a person should know who continues the run with these resolved values."""
    before = _entry(path)["meta"].get("config", {})
    notes = []
    for key in ("max_epochs", "max_steps"):
        was, is_now = (one.get("trainer", {}).get(key) for one in (before, now))
        if was != is_now:
            again = " and small images come again" if now["task"].get("resizing") else ""
            notes.append(
                f"trainer.{key} was {was} and is {is_now}: the schedule is stretched over the new "
                f"length, so the learning rate rises again{again}"
            )
            break
    return notes


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


def _entry(path: str) -> dict[str, Any]:
    try:
        state = Path(path).stat()
    except OSError:
        raise ConfigError(f"ckpt_path: no checkpoint at {path}") from None
    return _read_entry(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=4)
def _read_entry(path: str, *changed: int) -> dict[str, Any]:
    try:
        entry: dict[str, Any] = checkpoint.read(path)["cvattn"]
    except (FileNotFoundError, checkpoint.CheckpointError) as error:
        raise ConfigError(f"ckpt_path: {error}") from error
    if not all(isinstance(entry["meta"].get(k), dict) for k in ("source_config", "choices")):
        raise ConfigError(
            f"ckpt_path: {path} holds a network for use, without the state of a training run; "
            "continue from a checkpoint in a run's checkpoints/ folder"
        )
    return entry


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _keys(node: Any, path: str = "") -> list[str]:
    keys = [path] if path else []
    for key, child in node.items() if isinstance(node, dict) else ():
        keys += _keys(child, f"{path}.{key!s}" if path else str(key))
    return keys

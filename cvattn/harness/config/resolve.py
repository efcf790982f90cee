"""From the composed configuration to the one that runs: choices made, open values filled."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from cvattn.data import DataModule, Facts
from cvattn.data.info import a_target
from cvattn.harness.config.checks import check_config, is_own, resolve_target
from cvattn.harness.config.composition import parse
from cvattn.harness.config.decisions import decide_data
from cvattn.harness.config.errors import ConfigError
from cvattn.harness.config.own_network import fill_own, open_own
from cvattn.harness.config.trainer_checks import check_trainer
from cvattn.system import did_you_mean
from cvattn.tasks import Criterion, NetworkTask
from cvattn.tasks.class_weights import check_alone

SMALL_DATA = 10_000
# In words, where a number alone says little.
_COUNTED = {
    "num_classes": "classes",
    "source_vocab": "tokens in its sources",
    "target_vocab": "tokens in its answers",
    "classes": "classes",
}
# What is learned from data, by what each of its samples has.
_TASKS = {
    "class": "task=classification and task=flow do",
    "labels": "task=multilabel does",
    "mask": "task=segmentation does, with model=segmenter or model=unet",
    "text": "task=sequence does, with model=reader or model=transformer",
}
# What else than the data's value a key may have: a network that is told no class.
_NONE = {"classes": 0}


def resolve_data(cfg: DictConfig) -> str:
    """Replace ``data=auto`` by the data it means here; returns why, for the panel ('' if named)."""
    if "_target_" in cfg.data:
        return ""
    decision = decide_data(cfg.data.root)
    chosen = OmegaConf.create(OmegaConf.to_container(cfg.data[decision.choice], resolve=False))
    if "root" in chosen:
        chosen.root = cfg.data.root
    cfg.data = chosen
    return decision.reason


def resolve_recipe(cfg: DictConfig, train_size: int, overrides: Sequence[str]) -> bool:
    """Put the recipe's ``small`` values in place for small data; what the user set stays.

    Returns whether that was done.
    """
    small = cfg.recipe.pop("small", None)
    if small is None or train_size >= SMALL_DATA:
        return False
    said = {text.lstrip("+~").partition("=")[0] for text in overrides}
    for path, value in _leaves(small, "recipe"):
        if path not in said:
            OmegaConf.update(cfg, path, value)
    return True


def resolve_model(cfg: DictConfig, info: Facts) -> None:
    """Fill the values that only data and task know: classes, channels, image size and the like."""
    task = resolve_target("task", cfg.task._target_)
    learned = getattr(task, "target", None)
    if learned is not None and info.target not in (None, learned):
        raise ConfigError(
            f"data={info.name} has {a_target(info.target)} for each {info.unit}, and "
            f"{task.__name__} learns from {a_target(learned)}; {_TASKS[info.target]}"
        )
    known = info.fills()
    # What the task says of a network comes before what the data would.
    asked = task.network_values(info) if issubclass(task, NetworkTask) else {}
    for key in [key for key in cfg.model if OmegaConf.is_missing(cfg.model, key)]:
        if key in asked:
            cfg.model[key] = asked[key]
    if is_own(cfg.model._target_):
        fill_own(cfg.model, {**known, **asked})
    for name in ("model", "task"):
        node = cfg[name]
        for key in node:
            if OmegaConf.is_missing(node, key):
                if key not in known:
                    raise ConfigError(
                        f"{name}.{key} is for the data to say, and data={info.name} says "
                        f"{', '.join(known)}: it is made of {info.unit}s, which this {name} is "
                        "not for"
                    )
                node[key] = known[key]
    resolved = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    for name in ("model", "task"):
        checked = set(known) - (set(asked) if name == "model" else set())
        for key in set(resolved[name]) & checked:
            given = resolved[name][key]
            sides = known[key] if key == "image_size" and len(set(known[key])) == 1 else ()
            if given not in (known[key], _NONE.get(key, known[key]), *sides):
                what = f"{known[key]} {_COUNTED[key]}" if key in _COUNTED else f"{known[key]}"
                raise ConfigError(
                    f"{name}.{key}={given}, but {info.name} has {what}; leave {name}.{key}= out, "
                    "it is for the data to say"
                )


def resolve_callbacks(cfg: DictConfig, task: type[NetworkTask], criterion: Criterion) -> None:
    """Fill the values that only the task knows: what a run is judged by."""
    known = dict(zip(("monitor", "mode"), criterion, strict=True))
    for name, node in (cfg.get("callbacks") or {}).items():
        cls = resolve_target(f"callbacks.{name}", node._target_)
        needed = getattr(cls, "needs_task", task)
        if not issubclass(task, needed):
            raise ConfigError(
                f"callbacks.{name}: {cls.__name__} is for a {needed.__name__}, the task is a "
                f"{task.__name__}; leave it out"
            )
        for key in node:
            if OmegaConf.is_missing(node, key):
                if key not in known:
                    raise ConfigError(f"callbacks.{name}.{key} has no value")
                node[key] = known[key]


def resolve_paths(cfg: DictConfig) -> None:
    """Make paths absolute, so that the saved configuration means the same from anywhere."""
    cfg.run_dir = str(Path(cfg.run_dir).absolute())
    if cfg.data.get("root") is not None:
        cfg.data.root = str(Path(cfg.data.root).expanduser().absolute())


def build(node: DictConfig, name: str, **given: Any) -> Any:
    """Instantiate a part of the configuration; its own complaints come out as they are."""
    try:
        return hydra.utils.instantiate(node, _convert_="all", **given)
    except InstantiationException as error:
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        raise ConfigError(f"{name}: {cause}") from error


def resolve(cfg: DictConfig, overrides: Sequence[str]) -> tuple[DataModule, list[str]]:
    """All of the above in order: returns the data module, and notes for the panel.

    ``cfg`` is changed in place. Nothing is loaded or downloaded.
    """
    OmegaConf.set_struct(cfg, False)
    _drop_null(cfg)
    notes = []
    reason = resolve_data(cfg)
    if reason:
        notes.append(f"data=auto: {reason}")
    resolve_paths(cfg)
    if is_own(cfg.model.get("_target_")):
        open_own(cfg.model)
    check_config(cfg)
    data = build(cfg.data, "data")
    info = _described(data)
    if resolve_recipe(cfg, info.train_size, overrides):
        notes.append(f"the recipe's small values, for {info.train_size:,} training {info.unit}s")
        data = build(cfg.data, "data")
    notes += _check_recipe(cfg, overrides)
    if cfg.data.get("train_on_val"):
        notes.append("the validation images are trained on: their accuracy says nothing")
    resolve_model(cfg, info)
    _check_balance(cfg)
    task = resolve_target("task", cfg.task._target_)
    ours = issubclass(task, NetworkTask)
    resolve_callbacks(cfg, task, task.criterion_of(cfg.task) if ours else task.criterion)
    check_config(cfg)
    check_trainer(cfg)
    for key, node in (cfg.get("callbacks") or {}).items():
        build(node, f"callbacks.{key}")  # what it says of its values, it says now
    return data, notes


def _check_balance(cfg: DictConfig) -> None:
    try:
        check_alone(
            cfg.task.get("class_weights"),
            balanced_sampling=bool(cfg.data.get("balanced_sampling")),
        )
    except ValueError as error:
        raise ConfigError(f"task and data: {error}") from error


def _check_recipe(cfg: DictConfig, overrides: Sequence[str]) -> list[str]:
    """What the user gave of the recipe, and nothing reads: said; refused if he added the key."""
    notes = []
    for override in map(parse, overrides):
        key = override.key_or_group.replace("recipe.small.", "recipe.")
        if not key.startswith("recipe.") or key == "recipe.small" or override.is_delete():
            continue
        if _is_read(cfg, key):
            continue
        if override.is_add() or override.is_force_add():
            known = [path for path, _ in _leaves(cfg.recipe, "recipe") if path != key]
            raise ConfigError(
                f"{override.input_line}: nothing reads {key}{did_you_mean(key, known)}. Gradients "
                "are clipped with trainer.gradient_clip_val=; remarks go into notes="
            )
        notes.append(
            f"{override.input_line} has no effect here: another value stands in its place, or "
            "nothing reads it"
        )
    return notes


def _is_read(cfg: DictConfig, key: str) -> bool:
    """Whether another value of the key would change anything but the recipe itself."""
    other = copy.deepcopy(cfg)
    OmegaConf.update(other, key, "another value", merge=False, force_add=True)
    before, after = (OmegaConf.to_container(c, resolve=True) for c in (cfg, other))
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    return any(before[part] != after[part] for part in before if part != "recipe")


def _drop_null(cfg: DictConfig) -> None:
    """``callbacks.attention=null`` is none."""
    for group in ("callbacks", "logger"):
        nodes = cfg.get(group) or {}
        for name in [name for name in nodes if nodes[name] is None]:
            del nodes[name]


def _described(data: DataModule) -> Facts:
    try:
        return data.describe()
    except (ValueError, OSError) as error:
        raise ConfigError(f"data: {error}") from error


def _leaves(node: DictConfig, path: str) -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key in node:
        child = node[key]
        name = f"{path}.{key!s}"
        leaves += _leaves(child, name) if isinstance(child, DictConfig) else [(name, child)]
    return leaves

"""The configuration composed from ``conf/``, every key, group and choice checked on the way."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cvattn.harness.errors import ConfigError, did_you_mean

# Groups that every run has one choice of.
_ONE_EACH = {"data", "model", "recipe", "task", "trainer"}


def compose_checked(overrides: Sequence[Override], conf: Path) -> list[DictConfig]:
    """The configurations; of a sweep, one for each combination of its groups' choices.

    Choices decide which keys there are, values do not: of a key's values the first stands for all.

    Raises:
        ConfigError: naming what does not exist, what is near, and in which jobs of a sweep.
    """
    chosen: list[list[str]] = []
    values: list[Override] = []
    for override in overrides:
        key = override.key_or_group.split("@")[0]
        if (conf / key).is_dir() and not override.is_delete():
            options = sorted(path.stem for path in (conf / key).glob("*.yaml"))
            chosen.append(list(assignments(override, options)))
            for text in chosen[-1]:
                _check_choice(text, key, options, conf)
        else:
            values.append(override)
    Plugins.instance()  # Hydra's search path needs its plugins loaded once
    GlobalHydra.instance().clear()
    configurations = []
    with initialize_config_dir(version_base="1.3", config_dir=str(conf)):
        for groups in itertools.product(*chosen):
            try:
                configurations.append(_compose(groups, values, conf))
            except ConfigError as error:
                differs = [g for g, every in zip(groups, chosen, strict=True) if len(every) > 1]
                if not differs:
                    raise
                raise ConfigError(f"with {' '.join(differs)}: {error}") from error
    return configurations


def _compose(groups: Sequence[str], values: Sequence[Override], conf: Path) -> DictConfig:
    try:
        known = set(_keys(compose("config", overrides=list(groups))))
        for override in values:
            key = override.key_or_group
            if override.is_add() or override.is_force_add() or key.startswith("hydra"):
                continue
            if key not in known:
                names = known | {g.name for g in conf.iterdir() if g.is_dir()}
                raise ConfigError(f"unknown key {key!r}{_near(key, names)}")
        return compose("config", overrides=[*groups, *(next(assignments(o)) for o in values)])
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error).strip()) from error


def parse(text: str) -> Override:
    """One argument of the command line, read.

    Raises:
        ConfigError: it is not key=value.
    """
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise ConfigError(
            f"cannot read {text!r}; expected key=value, such as model=vit or trainer.max_epochs=5"
        ) from error


def assignments(override: Override, options: Sequence[str] | None = None) -> Iterator[str]:
    """``key=value`` for each value of the override; of an interval, for its start.

    Args:
        override: as parsed.
        options: the choices of the group, of which ``glob(...)`` takes some; None of any other key.
    """
    if not override.is_sweep_override():
        yield override.input_line or ""
        return
    key, given = override.get_key_element(), override.value()
    if isinstance(given, IntervalSweep):
        yield f"{key}={given.start}"
    elif isinstance(given, Glob):
        names = given.filter(list(options or []))
        if not names:
            raise ConfigError(f"{override.input_line}: no such choice of a group")
        yield from (f"{key}={name}" for name in names)
    else:
        yield from (f"{key}={value}" for value in override.sweep_string_iterator())


def _check_choice(text: str, group: str, options: Sequence[str], conf: Path) -> None:
    choice = parse(text).value()
    if choice is None or (choice == [] and group in _ONE_EACH):
        none = "" if group in _ONE_EACH else f", or {group}=[] for none"
        raise ConfigError(f"{text}: expected one of {', '.join(options)}{none}")
    for name in map(str, choice if isinstance(choice, list) else [choice]):
        if name not in options:
            near = _elsewhere(name, conf) or did_you_mean(name, options)
            listed = f" Choices of {group}: {', '.join(options)}."
            if near.startswith("; there are"):  # it has them all
                listed = ""
            raise ConfigError(f"{group}={name}: no such choice{near}{listed}")


def _elsewhere(name: str, conf: Path) -> str:
    groups = [path.name for path in sorted(conf.iterdir()) if (path / f"{name}.yaml").is_file()]
    return f"; there is {' and '.join(f'{group}={name}' for group in groups)}." if groups else ""


def _keys(cfg: DictConfig, path: str = "") -> list[str]:
    keys: list[str] = []
    for key in map(str, cfg):
        name = f"{path}.{key}" if path else key
        keys.append(name)
        node = cfg._get_node(key)
        if OmegaConf.is_interpolation(cfg, key) or OmegaConf.is_missing(cfg, key):
            continue
        if isinstance(node, DictConfig) and not node._is_none():
            keys += _keys(node, name)
    return keys


def _near(key: str, known: set[str]) -> str:
    text = did_you_mean(key, known)
    if text.startswith("; there are"):
        parent = key.rpartition(".")[0]
        inside = sorted(name for name in known if name.rpartition(".")[0] == parent)
        return (
            f"; in {parent or 'the configuration'} there are: {', '.join(inside)}" if inside else ""
        )
    return text

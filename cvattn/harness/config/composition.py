"""The configuration composed from ``conf/``, every key, group and choice checked on the way."""

import inspect
import itertools
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cvattn.harness.config.checks import GIVEN, resolve_target
from cvattn.harness.config.errors import ConfigError
from cvattn.harness.config.paths import assigned_list
from cvattn.system import did_you_mean

_ANY = "*"
# Groups that every run has one choice of.
_ONE_EACH = {"data", "model", "recipe", "task", "trainer"}


class Composer:
    """Composes configurations and says what is wrong with a command line.

    Args:
        conf: the folder with ``config.yaml``.
        folders: more places of choices, as ``hydra.searchpath`` has them (``file://``, ``pkg://``).

    Attributes:
        unlisted: keys that no file lists, of arguments that a ``_target_`` takes all the same
            (``trainer.max_time``); Hydra wants ``++`` before them.
    """

    def __init__(self, conf: Path, folders: Sequence[str] = ()) -> None:
        for folder in folders:
            path = Path(folder.removeprefix("file://"))
            if folder.startswith("file://") and not path.is_dir():
                raise ConfigError(f"{path} is not a folder; configurations were to be in it")
        self.conf = conf
        self.search = [assigned_list("hydra.searchpath", folders)] if folders else []
        self.unlisted: set[str] = set()
        Plugins.instance()  # Hydra's search path needs its plugins loaded once

    def compose(self, overrides: Sequence[Override], saved: Iterable[str] = ()) -> list[DictConfig]:
        """The configurations; of a sweep, one for each combination of its groups' choices.

        Choices decide which keys there are, values do not: of a key's values the first stands for
        all.

        Args:
            overrides: of the command line.
            saved: keys of the run that is continued, which exist whatever the files list.

        Raises:
            ConfigError: naming what does not exist, what is near, and in which jobs of a sweep.
        """
        chosen: list[list[str]] = []
        values: list[Override] = []
        GlobalHydra.instance().clear()
        configurations = []
        with initialize_config_dir(version_base="1.3", config_dir=str(self.conf)):
            for override in overrides:
                key = override.key_or_group.split("@")[0]
                options = [] if key.startswith("hydra") else self._options(key)
                if options and not override.is_delete():
                    chosen.append(list(assignments(override, options)))
                    for text in chosen[-1]:
                        self._check_choice(text, key, options)
                else:
                    values.append(override)
            for groups in itertools.product(*chosen):
                try:
                    configurations.append(self._compose(groups, values, set(saved)))
                except ConfigError as error:
                    differs = [g for g, every in zip(groups, chosen, strict=True) if len(every) > 1]
                    if not differs:
                        raise
                    raise ConfigError(f"with {' '.join(differs)}: {error}") from error
        return configurations

    def present(self, choices: Mapping[str, object], but: Container[str]) -> list[str]:
        """``group=choice`` of those groups, as far as there is such a choice here."""
        GlobalHydra.instance().clear()
        with initialize_config_dir(version_base="1.3", config_dir=str(self.conf)):
            return [
                f"{group}={choice}"
                for group, choice in choices.items()
                if group not in but and choice in self._options(group)
            ]

    def for_hydra(self, override: Override) -> str:
        """The override as it was written, or as Hydra takes it."""
        key, text = override.key_or_group, override.input_line or ""
        if key not in self.unlisted:
            return text
        return f"++{key}=null" if override.is_delete() else f"++{text}"

    def hydra_settings(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration's own ``hydra:`` node, which an experiment may have a say in."""
        GlobalHydra.instance().clear()
        with initialize_config_dir(version_base="1.3", config_dir=str(self.conf)):
            texts = [*overrides, *self.search]
            return compose("config", overrides=texts, return_hydra_config=True).hydra

    def run_folder(self, overrides: Sequence[str]) -> str:
        """The folder that Hydra would make for a run of its own, as an absolute path."""
        from hydra.core.hydra_config import HydraConfig

        GlobalHydra.instance().clear()
        with initialize_config_dir(version_base="1.3", config_dir=str(self.conf)):
            cfg = compose("config", overrides=[*overrides, *self.search], return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
            folder = str(cfg.hydra.run.dir)
            HydraConfig.instance().cfg = None
        return str(Path(folder).absolute())

    def _compose(
        self, groups: Sequence[str], values: Sequence[Override], saved: set[str]
    ) -> DictConfig:
        try:
            composed = compose("config", overrides=[*groups, *self.search])
            listed = set(_keys(composed))
            targets = {
                o.key_or_group.removesuffix("._target_"): o.value()
                for o in values
                if o.key_or_group.endswith("._target_")
            }
            texts = []
            for override in values:
                key, text = override.key_or_group, next(assignments(override))
                said = override.is_add() or override.is_force_add() or key.startswith("hydra")
                if not said and key not in listed:
                    if key not in saved:
                        parent, _, leaf = key.rpartition(".")
                        taken = _arguments(composed, parent, targets.get(parent))
                        known = leaf in taken or _ANY in taken
                        if not known or override.is_delete():
                            names = listed | saved | set(self._groups())
                            names |= {f"{parent}.{name}" for name in taken}
                            raise ConfigError(f"unknown key {key!r}{_near(key, names)}")
                    self.unlisted.add(key)
                    text = f"++{key}=null" if override.is_delete() else f"++{text}"
                texts.append(text)
            # A composition takes a good part of the time that a run needs to begin.
            again = [*groups, *texts, *self.search]
            return compose("config", overrides=again) if texts else composed
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(str(error).strip()) from error

    def _options(self, group: str) -> list[str]:
        loader = GlobalHydra.instance().config_loader()
        found = loader.get_group_options(group, ObjectType.CONFIG, "config", self.search)
        return sorted(found)

    def _groups(self) -> list[str]:
        loader = GlobalHydra.instance().config_loader()
        found = loader.get_group_options("", ObjectType.GROUP, "config", self.search)
        return sorted(name for name in found if name != "hydra")

    def _check_choice(self, text: str, group: str, options: Sequence[str]) -> None:
        choice = parse(text).value()
        if choice is None or (choice == [] and group in _ONE_EACH):
            none = "" if group in _ONE_EACH else f", or {group}=[] for none"
            raise ConfigError(f"{text}: expected one of {', '.join(options)}{none}")
        for name in map(str, choice if isinstance(choice, list) else [choice]):
            if name not in options:
                near = self._elsewhere(name) or did_you_mean(name, options)
                listed = f" Choices of {group}: {', '.join(options)}."
                if near.startswith("; there are"):  # it has them all
                    listed = ""
                raise ConfigError(f"{group}={name}: no such choice{near}{listed}")

    def _elsewhere(self, name: str) -> str:
        groups = [group for group in self._groups() if name in self._options(group)]
        return f"; there is {' and '.join(f'{g}={name}' for g in groups)}." if groups else ""


def parse(text: str) -> Override:
    """One argument of the command line, read.

    Raises:
        ConfigError: it is not key=value.
    """
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        key, _, value = text.partition("=")
        # Braces are Hydra's own, and the shell takes one pair of quotes away.
        quoted = f"; braces need quotes of their own: '{key}=\"{value}\"'" if "{" in value else ""
        raise ConfigError(
            f"cannot read {text!r}; expected key=value, such as model=vit or trainer.max_epochs=5"
            + quoted
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


def _arguments(cfg: DictConfig, path: str, target: object) -> list[str]:
    """The arguments that what stands at ``path`` takes from a configuration; none if unknown.

    ``_ANY`` is among them where a network takes more than it lists.
    """
    node = OmegaConf.select(cfg, path, throw_on_missing=False) if path else None
    above, _, leaf = path.rpartition(".")
    if not isinstance(node, DictConfig) or OmegaConf.is_interpolation(
        OmegaConf.select(cfg, above) if above else cfg, leaf
    ):
        return []
    target = target or node.get("_target_")
    if target is None:
        return []
    parameters = inspect.signature(resolve_target(path, target)).parameters.values()
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    names = [
        p.name for p in parameters if p.kind not in variable and p.name not in GIVEN.get(path, ())
    ]
    # What hands its arguments on, as torchvision's functions do, refuses what it does not take.
    hands_on = path == "model" and any(p.kind is p.VAR_KEYWORD for p in parameters)
    return [*names, _ANY] if hands_on else names


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

"""The command line read once before Hydra reads it, so that its mistakes get better answers.

Hydra refuses an unknown key before our code runs and suggests nothing; here the same command line
is composed first, and every key, group and choice that does not exist is named with near matches.
"""

import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cvattn.harness.decisions import register_resolvers
from cvattn.harness.errors import ConfigError, did_you_mean
from cvattn.harness.resume import resume_arguments, saved_choices

# Hydra's own flags, which it answers without running anything.
_INFORM = {"--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i"}
_SHELL = {"--shell-completion", "-sc"}
_MULTIRUN = {"-m", "--multirun"}
# Groups that every run has one choice of.
_ONE_EACH = {"data", "model", "recipe", "task", "trainer"}
# Groups that are for several runs: Hydra's plugin behind each, and the extra that installs it.
_OF_A_SWEEP = {
    "sweep": ("hydra-optuna-sweeper", "sweep"),
    "launcher": ("hydra-submitit-launcher", "slurm"),
}


def check_command_line(arguments: Sequence[str], conf: str | os.PathLike[str]) -> list[str]:
    """The arguments for Hydra, checked, with the run folder added when a run is continued.

    Args:
        arguments: as in ``sys.argv[1:]``. ``sweep=`` and ``launcher=`` imply ``--multirun``.
        conf: the folder with ``config.yaml``.

    Raises:
        ConfigError: naming what does not exist and what is near.
    """
    register_resolvers()
    arguments = list(arguments)
    if set(arguments) & (_INFORM | _SHELL):
        return arguments
    conf = Path(conf).absolute()
    overrides = [_parse(text) for text in arguments if not text.startswith("-")]
    multirun = _is_for_several_runs(overrides) or bool(_MULTIRUN & set(arguments))
    if multirun:
        # Hydra's parser takes the flag before or behind all overrides, not between them.
        arguments = [text for text in arguments if text not in _MULTIRUN] + ["--multirun"]
    else:
        # The keys that exist are those of the run that is continued, not of the defaults.
        added = _choices_of_the_run(overrides, conf)
        arguments += added
        overrides += [_parse(text) for text in added]
    for override in overrides:
        if override.is_sweep_override() and not multirun:
            raise ConfigError(
                f"{override.input_line}: several values need --multirun (-m); a list is written "
                "key=[a,b]"
            )
    cfg = compose_checked(overrides, conf)
    _check_run_folder(overrides, multirun)
    if multirun and (cfg.trainer.get("strategy") or "").startswith("ddp"):
        # Lightning starts each further process with the same command line: it would sweep again.
        raise ConfigError(
            "trainer=ddp cannot run inside a multirun: every process would start the whole sweep "
            "again. Run the jobs one by one, or sweep with trainer=auto."
        )
    if cfg.get("ckpt_path") is not None:
        if multirun:
            raise ConfigError("ckpt_path= continues one run; it cannot be part of a multirun")
        arguments += resume_arguments(str(cfg.ckpt_path))
    return arguments


def _is_for_several_runs(overrides: Sequence[Override]) -> bool:
    """Whether ``sweep=`` or ``launcher=`` is chosen; that they can run is seen to here."""
    named = {o.key_or_group: o for o in overrides}
    chosen = [group for group in _OF_A_SWEEP if group in named and named[group].value()]
    for group in chosen:
        package, extra = _OF_A_SWEEP[group]
        try:
            version(package)
        except PackageNotFoundError:
            raise ConfigError(
                f"{named[group].input_line} needs {package}: pip install -e '.[{extra}]'"
            ) from None
    given = any(o.is_sweep_override() for o in overrides)
    if "sweep" in chosen and not given and not any("hydra.sweeper.params" in key for key in named):
        raise ConfigError(
            f"{named['sweep'].input_line}: nothing to search; give a range or a choice, such as "
            "'recipe.optimizer.lr=tag(log, interval(0.04, 0.64))' or "
            "'recipe.label_smoothing=choice(0.0, 0.1, 0.2)'"
        )
    return bool(chosen)


def _choices_of_the_run(overrides: Sequence[Override], conf: Path) -> list[str]:
    """``group=choice`` as the checkpoint has them, where the command line names none itself."""
    named = {override.key_or_group: override for override in overrides}
    path = named["ckpt_path"].value() if "ckpt_path" in named else None
    if path is None or named["ckpt_path"].is_sweep_override():
        return []
    return [
        f"{group}={choice}"
        for group, choice in saved_choices(str(path)).items()
        if group not in named and choice is not None and (conf / group / f"{choice}.yaml").is_file()
    ]


def compose_checked(overrides: Sequence[Override], conf: Path) -> DictConfig:
    """Compose the configuration; of a sweep, its first job."""
    groups: list[Override] = []
    values: list[Override] = []
    for override in overrides:
        key = override.key_or_group.split("@")[0]
        is_group = (conf / key).is_dir() and not override.is_delete()
        if is_group:
            _check_choice(override, key, conf)
        (groups if is_group else values).append(override)
    Plugins.instance()  # Hydra's search path needs its plugins loaded once
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf)):
            base = compose("config", overrides=[_first(o) for o in groups])
            known = set(_keys(base))
            for override in values:
                key = override.key_or_group
                if override.is_add() or override.is_force_add() or key.startswith("hydra"):
                    continue
                if key not in known:
                    names = known | {g.name for g in conf.iterdir() if g.is_dir()}
                    raise ConfigError(f"unknown key {key!r}{_near(key, names)}")
            return compose("config", overrides=[_first(o) for o in overrides])
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error).strip()) from error


def _check_run_folder(overrides: Sequence[Override], multirun: bool) -> None:
    """Hydra makes the run folder before our code runs, so that it can be made is seen to here."""
    key, folder = ("hydra.sweep.dir", "multirun") if multirun else ("hydra.run.dir", "outputs")
    for override in overrides:
        if override.key_or_group == key:
            folder = str(override.value())
    # What stands before the first interpolation is known already.
    path = Path(folder.partition("${")[0] or ".").absolute()
    while not path.exists():
        path = path.parent
    if not path.is_dir():
        raise ConfigError(f"the run folder {folder} cannot be made: {path} is not a folder")
    if not os.access(path, os.W_OK):
        raise ConfigError(
            f"the run folder {folder} cannot be made: {path} is not writable; choose another with "
            f"{key}=..."
        )


def _parse(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise ConfigError(
            f"cannot read {text!r}; expected key=value, such as model=vit or trainer.max_epochs=5"
        ) from error


def _check_choice(override: Override, group: str, conf: Path) -> None:
    options = sorted(path.stem for path in (conf / group).glob("*.yaml"))
    choices = (
        list(override.sweep_string_iterator())
        if override.is_sweep_override()
        else [override.value()]
    )
    for choice in choices:
        if choice is None or (choice == [] and group in _ONE_EACH):
            none = "" if group in _ONE_EACH else f", or {group}=[] for none"
            raise ConfigError(f"{override.input_line}: expected one of {', '.join(options)}{none}")
        for name in choice if isinstance(choice, list) else [choice]:
            if str(name) not in options:
                elsewhere = [
                    f"{other.name}={name}"
                    for other in sorted(conf.iterdir())
                    if (other / f"{name}.yaml").is_file()
                ]
                near = (
                    f"; there is {' and '.join(elsewhere)}."
                    if elsewhere
                    else did_you_mean(str(name), options)
                )
                listed = (
                    ""
                    if near.startswith("; there are")
                    else f" Choices of {group}: {', '.join(options)}."
                )
                raise ConfigError(f"{group}={name}: no such choice{near}{listed}")


def _first(override: Override) -> str:
    if not override.is_sweep_override():
        return override.input_line or ""
    given = override.value()
    if isinstance(given, IntervalSweep):
        return f"{override.get_key_element()}={given.start}"
    value = next(iter(override.sweep_string_iterator()))
    return f"{override.get_key_element()}={value}"


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

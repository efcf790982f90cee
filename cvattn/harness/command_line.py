"""The command line read once before Hydra reads it, so that its mistakes get better answers.

Hydra refuses an unknown key before our code runs and suggests nothing; here the same command line
is composed first, and every key, group and choice that does not exist is named with near matches.
"""

import os
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from cvattn.harness.composition import assignments, compose_checked, parse
from cvattn.harness.decisions import register_resolvers
from cvattn.harness.errors import ConfigError
from cvattn.harness.resume import resume_arguments, saved_choices

# Hydra's own flags, which it answers without running anything.
_INFORM = {"--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i"}
_SHELL = {"--shell-completion", "-sc"}
_MULTIRUN = {"-m", "--multirun"}
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
    overrides = [parse(text) for text in arguments if not text.startswith("-")]
    multirun = _is_for_several_runs(overrides) or bool(_MULTIRUN & set(arguments))
    if multirun:
        # Hydra's parser takes the flag before or behind all overrides, not between them.
        arguments = [text for text in arguments if text not in _MULTIRUN] + ["--multirun"]
    else:
        # The keys that exist are those of the run that is continued, not of the defaults.
        added = _choices_of_the_run(overrides, conf)
        arguments += added
        overrides += [parse(text) for text in added]
    for override in overrides:
        if override.is_sweep_override() and not multirun:
            raise ConfigError(
                f"{override.input_line}: several values need --multirun (-m); a list is written "
                "key=[a,b]"
            )
    configurations = compose_checked(overrides, conf)
    _check_run_folder(overrides, multirun)
    if multirun and any(text.startswith("ddp") for text in _strategies(configurations, overrides)):
        # Lightning starts each further process with the same command line: it would sweep again.
        raise ConfigError(
            "trainer=ddp cannot run inside a multirun: every process would start the whole sweep "
            "again. Run the jobs one by one, or sweep with trainer=auto."
        )
    ckpt_path = configurations[0].get("ckpt_path")
    if ckpt_path is not None:
        if multirun:
            raise ConfigError("ckpt_path= continues one run; it cannot be part of a multirun")
        arguments += resume_arguments(str(ckpt_path))
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


def _strategies(
    configurations: Sequence[DictConfig], overrides: Sequence[Override]
) -> Iterator[str]:
    for cfg in configurations:
        yield str(cfg.trainer.get("strategy"))
    for override in overrides:
        if override.key_or_group == "trainer.strategy":
            yield from (text.partition("=")[2] for text in assignments(override))


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

"""The command line read once before Hydra reads it, so that its mistakes get better answers.

Hydra refuses an unknown key before our code runs and suggests nothing; here the same command line
is composed first, and every key, group and choice that does not exist is named with near matches.
"""

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from cvattn.harness.config.composition import Composer, assignments, parse
from cvattn.harness.config.decisions import Decision, decide, register_resolvers
from cvattn.harness.config.errors import ConfigError
from cvattn.harness.config.launchers import launch
from cvattn.harness.config.paths import assigned, holds_a_run, short
from cvattn.harness.config.saved_run import SavedRun, last_of, open_run, run_folder
from cvattn.harness.config.trainer_checks import check_processes, strategy_of

# Hydra's own flags, which it answers without running anything.
_INFORM = {"--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i"}
_SHELL = {"--shell-completion", "-sc"}
_MULTIRUN = {"-m", "--multirun"}
# Those that take a value: a folder of more choices, or another configuration altogether.
_FOLDER = {"--config-dir", "-cd"}
_ELSEWHERE = {"--config-path", "-cp", "--config-name", "-cn", "--experimental-rerun"}
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
    overrides, flags, folders = split_arguments(arguments)
    multirun = _is_for_several_runs(overrides) or bool(_MULTIRUN & set(flags))
    # Hydra's parser takes flags before or behind all overrides, not between them.
    flags = [text for text in flags if text not in _MULTIRUN] + ["--multirun"] * multirun
    named = {override.key_or_group: override for override in overrides}
    for override in overrides:
        if override.is_sweep_override() and not multirun:
            raise ConfigError(
                f"{override.input_line}: several values need --multirun (-m); a list is written "
                "key=[a,b]"
            )
    composer = Composer(Path(conf).absolute(), folders)
    given = named["ckpt_path"].value() if "ckpt_path" in named else None
    path = None if given is None else str(given)
    if path is not None and multirun:
        raise ConfigError("ckpt_path= continues one run; it cannot be part of a multirun")
    auto = "resume" in named and named["resume"].value() == "auto"
    if auto:
        path = _found_checkpoint(named, multirun=multirun)
        if path is not None and given is None:
            overrides.append(parse(assigned("ckpt_path", path)))
    saved: SavedRun | None = None
    if path is not None:
        _check_same_folder(named, path)
        saved = open_run(path)
        # The keys that exist are those of the run that is continued, not of the defaults.
        kept = composer.present(saved.choices, set(named))
        overrides += [parse(text) for text in kept]
    configurations = composer.compose(overrides, () if saved is None else saved.keys())
    texts = [composer.for_hydra(override) for override in overrides]
    for cfg in configurations:
        check_processes(cfg.trainer)
    launched = launch()
    if multirun and launched is not None:
        raise ConfigError(
            "with several processes started (by torchrun or srun) each would start the whole "
            "multirun; start one process: launcher=slurm gives every job of a sweep its own"
        )
    if launched is not None:
        _check_same_start(path, saved)
    _check_run_folder(overrides, multirun, new=path is None and not auto)
    if multirun and any(text.startswith("ddp") for text in _strategies(configurations, overrides)):
        # Lightning starts each further process with the same command line: it would sweep again.
        raise ConfigError(
            "trainer=ddp cannot run inside a multirun: every process would start the whole sweep "
            "again. Run the jobs one by one, or sweep with trainer=auto."
        )
    if saved is not None:
        texts.append(assigned("hydra.run.dir", saved.folder))  # it writes where it began
    elif "run_dir" in named and "hydra.run.dir" not in named and not multirun:
        texts.append(assigned("hydra.run.dir", str(named["run_dir"].value())))
    if launched is not None and path is None:
        # Its name has a time and a number in it, of the first process alone.
        folder = decide("run folder", lambda: Decision(composer.run_folder(texts), ""))
        texts = [text for text in texts if not text.startswith("hydra.run.dir=")]
        texts.append(assigned("hydra.run.dir", folder.choice))
    return texts + flags


def split_arguments(arguments: Sequence[str]) -> tuple[list[Override], list[str], list[str]]:
    """Overrides, Hydra's flags with their values, and folders of more choices (``file://``)."""
    texts, flags, folders = [], [], []
    left = iter(arguments)
    for text in left:
        flag, equals, value = text.partition("=")
        if not flag.startswith("-"):
            texts.append(text)
            continue
        flags.append(text)
        if flag in _ELSEWHERE:
            raise ConfigError(
                f"{flag}: the configuration is conf/config.yaml; own choices for its groups come "
                "with --config-dir FOLDER, such as FOLDER/experiment/mine.yaml"
            )
        if flag in _FOLDER:
            if not equals:
                value = next(left, "")
                flags.append(value)
            if not Path(value).is_dir():
                raise ConfigError(f"{flag} {value}: there is no such folder")
            folders.append(f"file://{Path(value).absolute()}")
    overrides = [parse(text) for text in texts]
    for override in overrides:
        if override.key_or_group == "hydra.searchpath":
            more = override.value()
            folders += map(str, more if isinstance(more, list) else [more])
    return overrides, flags, folders


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
        yield strategy_of(cfg.trainer)
    for override in overrides:
        if override.key_or_group == "trainer.strategy":
            yield from (text.partition("=")[2] for text in assignments(override))


def _check_same_folder(named: Mapping[str, Override], path: str) -> None:
    """A continued run writes where it began; to branch off, its folder is copied."""
    here = run_folder(path)
    for key in ("hydra.run.dir", "run_dir"):
        if key in named and Path(str(named[key].value())).absolute() != here:
            last = here / "checkpoints" / Path(path).name
            raise ConfigError(
                f"{named[key].input_line}: a continued run writes into its own folder, {here}. To "
                f"branch off, copy that folder and continue the copy: ckpt_path=COPY/"
                f"{last.relative_to(here) if last.exists() else Path(path).name}"
            )


def _check_same_start(path: str | None, saved: SavedRun | None) -> None:
    """All processes go on from the same checkpoint, or all of them begin."""
    mine = "the beginning" if saved is None else f"a checkpoint {saved.words}"
    first = decide("start", lambda: Decision(mine, path or ""))
    if first.choice == mine:
        return
    where = socket.gethostname()
    raise ConfigError(
        f"the first process starts from {first.choice} ({first.reason or 'no checkpoint'}), and "
        f"this one on {where} from {mine} ({path or 'no checkpoint'}): the run folder has to be "
        "the same on all nodes, or at least checkpoints/last.ckpt in it; use a shared folder, or "
        "copy it from the first node, where the run writes"
    )


def _found_checkpoint(named: Mapping[str, Override], *, multirun: bool) -> str | None:
    """The checkpoint of a run with ``resume=auto`` that has begun."""
    keys = ("hydra.sweep.dir",) if multirun else ("hydra.run.dir", "run_dir")
    folders = [str(named[key].value()) for key in keys if key in named]
    launched = multirun and "launcher" in named  # it starts a job again in the job's own folder
    if not launched and (not folders or "${" in folders[0]):
        what, example = ("sweep", "multirun/NAME") if multirun else ("run", "outputs/NAME")
        raise ConfigError(
            f"resume=auto needs the {what}'s folder, which is a new one for each start: add "
            f"{keys[0]}={example}, the same each time"
        )
    found = None if multirun else last_of(Path(folders[0]))
    # Further processes are started with the command line of the first, on which it was found.
    if "ckpt_path" in named and str(named["ckpt_path"].value()) != found:
        raise ConfigError(
            "resume=auto finds the checkpoint in the run's folder itself; leave ckpt_path= out, or "
            "resume="
        )
    return found


def _check_run_folder(overrides: Sequence[Override], multirun: bool, *, new: bool) -> None:
    """Hydra makes the run folder before our code runs, so what is wrong with it is said here."""
    key, folder = ("hydra.sweep.dir", "multirun") if multirun else ("hydra.run.dir", "outputs")
    for override in overrides:
        if override.key_or_group == "run_dir" and multirun:
            raise ConfigError(
                f"{override.input_line}: all jobs would write into one folder; name their parent "
                "with hydra.sweep.dir="
            )
        if override.key_or_group in (key, "run_dir"):
            folder = str(override.value())
            if new and "${" not in folder:
                _check_new(Path(folder), multirun)
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


def _check_new(folder: Path, multirun: bool) -> None:
    """No run writes over another one."""
    places = sorted(folder.glob("*/")) if multirun else [folder]
    for place in filter(holds_a_run, places):
        last = place / "checkpoints" / "last.ckpt"
        on = f"continue it with {assigned('ckpt_path', short(last))}, " if last.exists() else ""
        raise ConfigError(
            f"{short(place)} holds a run already, and a new one would write over it: {on}name "
            "another folder, or take the old one away"
        )

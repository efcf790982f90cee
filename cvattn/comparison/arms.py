"""The arms of a comparison: one for each value of what is swept, by an experiment or by hand."""

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hydra.core.override_parser.types import Glob, Override
from omegaconf import OmegaConf

from cvattn.harness import ConfigError
from cvattn.harness.config.command_line import split_arguments
from cvattn.harness.config.composition import Composer, assignments, parse
from cvattn.harness.config.decisions import register_resolvers
from cvattn.harness.config.paths import CONF

# What the comparison says of each of its runs itself.
_OURS = {
    "seed": "the seeds come with --seeds N: 0 to N - 1",
    "hydra.run.dir": "each run has a folder of its own below --folder",
    "run_dir": "each run has a folder of its own below --folder",
    "hydra.sweep.dir": "each run has a folder of its own below --folder",
    "ckpt_path": "each run begins anew, or goes on by itself",
    "resume": "each run begins anew, or goes on by itself",
    "sweep": "a search has no arms to compare",
    "launcher": "the runs are made here, one after the other",
}


@dataclass(frozen=True)
class Arms:
    """What is compared.

    Attributes:
        name: for files.
        overrides: of each arm, by its name; the others are compared to the first.
    """

    name: str
    overrides: Mapping[str, tuple[str, ...]]


def read_arms(arguments: Sequence[str]) -> Arms:
    """The arms that a command line of training asks for.

    Several values of a key (``model.attention=unet,none``) are the arms, those of several keys in
    all combinations. What an experiment sweeps (``hydra.sweeper.params``) counts unless the command
    line says otherwise; its seeds do not.

    Args:
        arguments: ``KEY=VALUE``, ``--config-dir=FOLDER``.

    Raises:
        ConfigError: nothing is swept, a range has no end, or something does not exist.
    """
    register_resolvers()
    given, flags, folders = split_arguments(arguments)
    for override in given:
        if override.key_or_group in _OURS:
            raise ConfigError(f"{override.input_line}: {_OURS[override.key_or_group]}")
        _check_listed(override)
    composer = Composer(CONF, folders)
    composer.compose(given)  # what does not exist is named here
    first = [o if not o.is_sweep_override() else parse(next(assignments(o))) for o in given]
    settings = composer.hydra_settings([composer.for_hydra(override) for override in first])
    swept: dict[str, list[str]] = {}
    fixed: dict[str, str] = {}
    # Experiments that are arms themselves are taken as a run of each is.
    several = any(o.key_or_group == "experiment" and o.is_sweep_override() for o in given)
    params = None if several else settings.sweeper.get("params")
    for override in [*_parsed(params or {}), *given]:
        key = override.key_or_group
        fixed.pop(key, None)
        swept.pop(key, None)  # the command line in place of the experiment
        if override.is_sweep_override():
            swept[key] = list(assignments(override))
        else:
            fixed[key] = override.input_line or ""
    fixed |= {"hydra.mode": "hydra.mode=RUN"} if _sweeps_itself(settings) else {}
    _check_arms(swept)
    common = [*flags, *fixed.values()]
    arms = {
        _arm_name(values, swept): (*common, *values)
        for values in itertools.product(*swept.values())
    }
    return Arms(_file_name(given, swept, arms), arms)


def _parsed(params: Mapping[object, object]) -> Iterator[Override]:
    """What an experiment sweeps, without its seeds."""
    for key, value in params.items():
        if key != "seed":
            override = parse(f"{key}={value}")
            _check_listed(override)
            yield override


def _check_listed(override: Override) -> None:
    if not override.is_sweep_override():
        return
    if not override.is_discrete_sweep() or isinstance(override.value(), Glob):
        raise ConfigError(
            f"{override.input_line}: arms are named one by one, {override.key_or_group}=ONE,OTHER"
        )


def _check_arms(swept: Mapping[str, list[str]]) -> None:
    for texts in swept.values():
        twice = [text for text in texts if texts.count(text) > 1]
        if twice:
            raise ConfigError(f"{twice[0]} is there twice: it would be compared with itself")
    if not any(len(texts) > 1 for texts in swept.values()):
        raise ConfigError(
            "nothing to compare: give a key several values, such as model.attention=common,none, "
            "or an experiment that sweeps one, such as experiment=attention_ablation"
        )


def _sweeps_itself(settings: object) -> bool:
    return str(OmegaConf.select(settings, "mode")).endswith("MULTIRUN")  # type: ignore[arg-type]


def _arm_name(values: Sequence[str], swept: Mapping[str, list[str]]) -> str:
    """The value alone if one key is swept and its values are words; else "key=value", ..."""
    pairs = [text.lstrip("+").partition("=")[::2] for text in values]
    if len(swept) == 1:
        words = [text.partition("=")[2] for text in next(iter(swept.values()))]
        if all(re.fullmatch(r"[a-z]\w*", word, re.IGNORECASE) for word in words) and not (
            {word.lower() for word in words} & {"true", "false", "null"}
        ):
            return pairs[0][1]
    leaves = [key.rpartition(".")[2] for key in swept]
    unique = len(set(leaves)) == len(leaves)
    shown = [(key.rpartition(".")[2] if unique else key, value) for key, value in pairs]
    return " ".join(f"{key}={value}" for key, value in shown)


def _file_name(
    given: Sequence[Override], swept: Mapping[str, list[str]], arms: Mapping[str, Sequence[str]]
) -> str:
    """The experiment's name if nothing else was said, else one that other arms do not have."""
    experiment = next((o.value() for o in given if o.key_or_group == "experiment"), None)
    name = re.sub(r"[^\w.-]+", "_", str(experiment or "_".join(swept).lstrip("+")))
    if experiment is not None and len(given) == 1:
        return name
    return f"{name}_{hashlib.sha1(repr(sorted(arms.items())).encode()).hexdigest()[:7]}"

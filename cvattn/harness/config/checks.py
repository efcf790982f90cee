"""Everything that can be wrong with a configuration, found before any data is loaded."""

import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError
from pytorch_lightning.callbacks import StochasticWeightAveraging, WeightAveraging
from pytorch_lightning.loggers import Logger
from torch import nn
from torch.optim import Optimizer
from torchvision.transforms import v2

from cvattn import models
from cvattn.data import DataModule
from cvattn.harness.averaging import AveragedWeights
from cvattn.harness.config.errors import ConfigError
from cvattn.system import did_you_mean, imported

OPTIMIZERS = tuple(
    f"{room}.{name}"
    for room in ("task", "recipe")
    for name in ("optimizer", "discriminator_optimizer")
)
# What a `_target_` may be, by where it stands: a configuration cannot call anything else.
KINDS: dict[str, type] = {
    "model": nn.Module,
    "data": DataModule,
    "data.transforms.*": v2.Transform,
    "task": pl.LightningModule,
    **dict.fromkeys(OPTIMIZERS, Optimizer),
    "trainer": pl.Trainer,
    "callbacks.*": pl.Callback,
    "logger.*": Logger,
}
# Arguments that the harness passes itself, and what says them instead.
GIVEN = {
    "task": {"network": "model=", "test_views": "data.test_views="},
    **{key: {"params": "the task"} for key in OPTIMIZERS},
    "trainer": {
        "callbacks": "callbacks=",
        "logger": "logger=",
        "default_root_dir": "hydra.run.dir=",
        "enable_progress_bar": "the harness, which has its own",
        "enable_checkpointing": "callbacks=",
        "use_distributed_sampler": "the data, whose loaders know their process",
    },
}
# What else may be meant.
_OF_OTHER_KIND = {
    "model": ", or a function that returns one and says so (def net(num_classes) -> nn.Module)",
    "data": "; other loaders and LightningDataModules are for Python: cvattn.fit(network, data)",
}
TOP_LEVEL = {
    *("data", "task", "model", "recipe", "trainer", "callbacks", "logger"),
    *("seed", "compile", "ckpt_path", "resume", "run_dir", "notes", "distributed_timeout"),
}


def check_config(cfg: DictConfig) -> None:
    """Raise ConfigError unless every ``_target_`` is of its kind and takes its values."""
    for key in cfg:
        if key not in TOP_LEVEL:
            raise ConfigError(f"unknown key {key!r}{did_you_mean(str(key), sorted(TOP_LEVEL))}")
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
    except InterpolationKeyError as error:
        raise ConfigError(
            f"{error.full_key}: {str(error.msg).splitlines()[0]}; is the recipe one for this task?"
        ) from error
    assert isinstance(plain, dict)
    for name, annotation in (
        ("seed", int | None),
        ("compile", bool),
        ("ckpt_path", str | None),
        ("resume", typing.Literal["auto"] | None),
        ("distributed_timeout", float | None),
    ):
        if not fits(plain.get(name), annotation):
            raise ConfigError(f"{name}={plain[name]!r}: expected {_show(annotation)}")
    minutes = plain.get("distributed_timeout")
    if minutes is not None and minutes <= 0:
        raise ConfigError(f"distributed_timeout={minutes}: expected minutes above 0, or null")
    if isinstance(plain.get("notes"), dict):
        raise ConfigError("notes: expected a remark in words, or a list of them")
    for path, node in _targets(plain):
        _check_target(path, node)


def _targets(node: Any, path: str = "") -> Iterator[tuple[str, dict]]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield path, dict(node)
        for key, child in node.items():
            yield from _targets(child, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from _targets(child, f"{path}.{index}")


def _check_target(path: str, node: dict) -> None:
    kind = _kind(path)
    if kind is None:
        raise ConfigError(f"{path} has a _target_; those belong to {', '.join(KINDS)}")
    target = resolve_target(path, node["_target_"])
    cls = made_by(target) if path == "model" else target
    if not (inspect.isclass(cls) and issubclass(cls, kind)):
        raise ConfigError(
            f"{path}._target_={node['_target_']}: expected a {kind.__module__}.{kind.__name__}"
            + _OF_OTHER_KIND.get(path, "")
        )
    averages = issubclass(cls, (WeightAveraging, StochasticWeightAveraging))
    if averages and not issubclass(cls, AveragedWeights):
        raise ConfigError(
            f"{path}._target_={node['_target_']}: with it, weights are judged and saved that no "
            "average has reached; use callbacks=[default,ema], or a subclass of "
            "cvattn.harness.AveragedWeights"
        )
    parameters = inspect.signature(target).parameters
    values = {k: v for k, v in node.items() if not (k.startswith("_") and k.endswith("_"))}
    if strange := set(node) - set(values) - {"_target_", "_partial_", "_convert_", "_recursive_"}:
        raise ConfigError(f"{path}.{min(strange)}: arguments are given by their names")
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given = GIVEN.get(path, {})
    for name, value in values.items():
        if name in given:
            raise ConfigError(f"{path}.{name} is for {given[name]} to say")
        if name not in parameters:
            if open_ended:
                continue
            raise ConfigError(
                f"{path}.{name}: {target.__name__} has no such argument"
                + did_you_mean(name, parameters)
                + "; a network of your own starts from model=own"
                * (path == "model" and is_own(node["_target_"]))
            )
        if value == "???":
            continue
        annotation = annotation_of(target, parameters[name])
        if path == "trainer" and name == "precision" and value == "auto":
            continue  # the harness replaces it by what the probe says
        if not fits(value, annotation):
            raise ConfigError(f"{path}.{name}={value!r}: expected {_show(annotation)}")
    required = {
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    missing = required - set(values) - set(GIVEN.get(path, ()))
    if missing and not node.get("_partial_"):
        raise ConfigError(f"{path}: {target.__name__} also needs {', '.join(sorted(missing))}")


def _kind(path: str) -> type | None:
    # A list may be within one of its kind: data.transforms.0.transforms.1 of a RandomApply.
    path = re.sub(r"^(data\.transforms)(\.\d+\.transforms)*(?=\.\d+$)", r"\1", path)
    return KINDS.get(path) or KINDS.get(path.rsplit(".", 1)[0] + ".*")


def resolve_target(path: str, target: Any) -> Any:
    """What a ``_target_`` names, imported.

    Raises:
        ConfigError: there is no such thing.
    """
    if target == "???":
        raise ConfigError(f"{path}._target_: name the class, such as {path}._target_=my_net.Net")
    if not isinstance(target, str):
        raise ConfigError(f"{path}._target_={target!r}: expected the dotted name of a class")
    try:
        return imported(target)
    except ValueError as error:
        raise ConfigError(f"{path}._target_={error}") from error


def made_by(target: Any) -> Any:
    """The class of what a class or function makes; a function says it in its annotation."""
    if inspect.isclass(target) or not callable(target):
        return target
    try:
        return typing.get_type_hints(target).get("return")
    except (NameError, TypeError):
        return None


def is_own(target: object) -> bool:
    """Whether a network's ``_target_`` names no class of :mod:`cvattn.models`."""
    return not str(target).startswith(f"{models.__name__}.")


def annotation_of(target: Any, parameter: inspect.Parameter) -> Any:
    """What a parameter of a class or function asks for; Any if it does not say."""
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function).get(parameter.name, Any)
    except (NameError, TypeError):
        return Any


def fits(value: Any, annotation: Any) -> bool:
    """Whether a YAML value may be passed where ``annotation`` is asked for.

    An int serves as a float and a list as any sequence; a bool is not a number. What an annotation
    says beyond YAML's own types is left to the constructor, and what has a ``_target_`` is checked
    by its kind.
    """
    if isinstance(value, Mapping) and "_target_" in value:
        return True
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in arguments)
    if origin is typing.Annotated:
        return fits(value, arguments[0])
    if annotation is Any:
        return True
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is bool:
        return isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is str:
        return isinstance(value, str)
    if origin is tuple and arguments and Ellipsis not in arguments:
        return (
            isinstance(value, (list, tuple))
            and len(value) == len(arguments)
            and all(fits(v, a) for v, a in zip(value, arguments, strict=True))
        )
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return isinstance(value, (list, tuple)) and all(fits(v, arguments[0]) for v in value)
    if inspect.isclass(annotation) and annotation is not object:
        return isinstance(value, annotation)
    return True


def _show(annotation: Any) -> str:
    """An annotation as a person would write it."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_show(a) for a in arguments)
    if annotation is type(None):
        return "null"
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return "a list of " + ", ".join(_show(a) for a in arguments if a is not Ellipsis)
    return getattr(annotation, "__name__", str(annotation))

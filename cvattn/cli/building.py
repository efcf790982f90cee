"""Modules from a line of text: the name of a public class with literal arguments, or a file."""

import ast
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import cvattn.blocks
import cvattn.core
import cvattn.models
from cvattn.checkpoint import CheckpointError, Own, load
from cvattn.cli.common import CommandError
from cvattn.system import did_you_mean


def build(text: str, own: Own | None = None) -> tuple[nn.Module, bool]:
    """The module, and whether it is a whole network (its first input needs no gradient).

    Args:
        text: ``SelfAttention2d(128)``, ``SelfAttention2d.biggan(64)``, ``VisionTransformer(10,
            image_size=(32, 64))``: a class that cvattn exports with literal arguments, which is
            read and never evaluated; its weights are shapes alone. Or the path of a checkpoint.
        own: the ``network`` of :func:`cvattn.load`.

    Raises:
        CommandError: unknown names (with near matches), arguments that are no literals or do not
            fit, files that are no checkpoints.
    """
    if text.endswith(".ckpt") or os.sep in text.partition("(")[0] or Path(text).is_file():
        try:
            return load(text, network=own), True
        except (FileNotFoundError, CheckpointError) as error:
            raise CommandError(" ".join(str(error).split())[:600]) from error
    if own is not None:
        raise CommandError(f"--network is for checkpoints, and {text!r} is none")
    name, arguments, named = _read(text)
    known = _factories()
    if name not in known:
        raise CommandError(f"there is no {name!r} to be built{did_you_mean(name, known)}")
    parameters = _argument_names(known[name])
    for key in named:
        if parameters is not None and key not in parameters:
            raise CommandError(f"{name} has no argument {key!r}{did_you_mean(key, parameters)}")
    try:
        with torch.device("meta"):
            module = known[name](*arguments, **named)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CommandError(f"{text}: {lines[0]}") from error
    return module, name in cvattn.models.__all__


def _argument_names(factory: Callable[..., nn.Module]) -> dict[str, None] | None:
    """What it takes by name, with what it hands on to its class and that to its bases.

    None where it hands on more, of which only the call itself tells.
    """
    kind: Any = getattr(factory, "__self__", factory)
    bases = [base for base in inspect.getmro(kind) if issubclass(base, nn.Module)][:-1]
    own = [vars(base)["__init__"] for base in bases if "__init__" in vars(base)]
    names: dict[str, None] = {}
    for function in (factory, *own):
        parameters = inspect.signature(function).parameters.values()
        names |= {each.name: None for each in parameters if each.kind is not each.VAR_KEYWORD}
        if all(each.kind is not each.VAR_KEYWORD for each in parameters):
            names.pop("self", None)
            return names
    return None


def _read(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise CommandError(f"cannot read {text!r}: {error.args[0]}; {_EXPECTED}") from error
    if not isinstance(call, ast.Call):
        raise CommandError(f"{text!r} is no call; {_EXPECTED}")
    arguments = [_literal(given) for given in call.args]
    named = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise CommandError(f"cannot read '**' in {text!r}; name the arguments")
        named[keyword.arg] = _literal(keyword.value)
    return ast.unparse(call.func), arguments, named


_EXPECTED = "expected a class with its arguments, such as 'SelfAttention2d(128)', or a .ckpt file"


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError) as error:
        raise CommandError(
            f"{ast.unparse(node)!r} is no literal; expected numbers, strings, True, False, None, "
            "or tuples, lists and dicts of these"
        ) from error


def _factories() -> dict[str, Callable[..., nn.Module]]:
    """Every module class that cvattn exports, and the other ways to make it, as ``Class.way``."""
    found: dict[str, Callable[..., nn.Module]] = {}
    for package in (cvattn.blocks, cvattn.core, cvattn.models):
        for name in package.__all__:
            cls = getattr(package, name)
            if inspect.isclass(cls) and issubclass(cls, nn.Module):
                found[name] = cls
                for way in dir(cls):
                    method = inspect.getattr_static(cls, way)
                    if isinstance(method, classmethod) and not way.startswith("_"):
                        found[f"{name}.{way}"] = getattr(cls, way)
    return found

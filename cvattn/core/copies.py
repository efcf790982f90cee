"""Copies of a module with other tensors in it, and modules as they were before compilation."""

import copy
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def copy_with(module: nn.Module, convert: Callable[[Tensor], Tensor]) -> nn.Module:
    """A deep copy that has ``convert(tensor)`` in place of each tensor; no value is copied besides.

    Parameters, buffers, and tensors that a module merely keeps (the older spectral_norm keeps a
    computed weight, which ``copy.deepcopy`` refuses). ``convert`` gets detached tensors.
    """
    memo: dict[int, Any] = {}
    for part in uncompiled(module).modules():
        for parameter in part.parameters(recurse=False):
            fresh = nn.Parameter(convert(parameter.detach()), parameter.requires_grad)
            memo.setdefault(id(parameter), fresh)
        kept = [value for value in vars(part).values() if isinstance(value, Tensor)]
        for tensor in [*part.buffers(recurse=False), *kept]:
            memo.setdefault(id(tensor), convert(tensor.detach()))
    return copy.deepcopy(uncompiled(module), memo)


def uncompiled(module: nn.Module) -> nn.Module:
    """The module that ``torch.compile(module)`` wraps, or the one given."""
    inner = getattr(module, "_orig_mod", module)
    assert isinstance(inner, nn.Module)
    return inner


@contextmanager
def running_uncompiled() -> Iterator[None]:
    """Whatever was compiled runs as written; torch's compiler is not loaded just to say so."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        # A compiled part tells of global hooks, which those who count here have set themselves.
        warnings.filterwarnings("ignore", message="Using `torch.compile\\(module\\)`")
        yield

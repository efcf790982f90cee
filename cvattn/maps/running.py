"""Which modules of a model are running, and what maps they were given."""

import threading
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks


class Frame:
    """A module whose forward is running.

    Attributes:
        module: it.
        args: what it was given by position.
        conv_grids: (H, W) of what convolutions inside it, or it, have given so far in this run.
        guard: a context that ends with it.
        shows_calls: whether it called an attention function itself.
        held: what is done at its end, if it called none.
    """

    __slots__ = ("args", "conv_grids", "guard", "held", "module", "shows_calls")

    def __init__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.module, self.args = module, args
        self.conv_grids: list[tuple[int, int]] = []
        self.guard: AbstractContextManager | None = None
        self.shows_calls = False
        self.held: list[Callable[[], None]] = []

    @property
    def shapes(self) -> list[torch.Size]:
        """Of the tensors that it was given by position."""
        return [arg.shape for arg in self.args if isinstance(arg, Tensor) and not arg.is_nested]


Begin = Callable[[Frame], None]
End = Callable[[Frame, tuple, dict[str, Any], Any], None]


def in_backward() -> bool:
    """Whether activation checkpointing runs parts of a model again, inside a backward pass."""
    return torch._C._current_graph_task_id() != -1


class RunningModules:
    """The frames of a model's modules in this thread, from the outermost to the innermost.

    By hooks on all modules at once: those of single modules keep ``nn.TransformerEncoderLayer``
    off its fast path, which gives other numbers in the last place.

    Args:
        modules: all of the model.
        begin, end: called with each frame, when it is on the stack, and when it is off again.

    Attributes:
        stack: the frames, innermost last.
        ran: every module that has begun to run.
    """

    def __init__(self, modules: Collection[nn.Module], begin: Begin, end: End) -> None:
        self.stack: list[Frame] = []
        self.ran: set[nn.Module] = set()
        self._modules, self._begin, self._end = modules, begin, end
        self._thread = threading.get_ident()
        self._handles = [
            module_hooks.register_module_forward_pre_hook(self._enter),
            module_hooks.register_module_forward_hook(
                self._leave, with_kwargs=True, always_call=True
            ),
        ]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
            # torch leaves this entry behind, and then believes that there are global hooks.
            module_hooks._global_forward_hooks_with_kwargs.pop(handle.id, None)
        while self.stack:
            self._pop()

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if threading.get_ident() != self._thread or module not in self._modules:
            return
        frame = Frame(module, args)
        self.stack.append(frame)
        self.ran.add(module)
        self._begin(frame)
        if frame.guard is not None:
            frame.guard.__enter__()

    def _leave(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        # After an exception torch leaves the keyword arguments out, and gives None for the output.
        kwargs, output = rest if len(rest) == 2 else ({}, None)
        if threading.get_ident() != self._thread:
            return
        if not any(frame.module is module for frame in self.stack):
            return  # it began before anyone watched
        while self.stack[-1].module is not module:  # ended without a hook, by an interrupt
            self._pop()
        frame = self._pop()
        if isinstance(module, nn.Conv2d) and isinstance(output, Tensor) and output.ndim == 4:
            for each in (*self.stack, frame):
                each.conv_grids.append((output.shape[2], output.shape[3]))
        self._end(frame, args, kwargs, output)

    _enter.only_watches = _leave.only_watches = True  # type: ignore[attr-defined]

    def _pop(self) -> Frame:
        frame = self.stack.pop()
        if frame.guard is not None:
            frame.guard.__exit__(None, None, None)
        return frame

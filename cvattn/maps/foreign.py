"""Attention of others, seen while it runs: whatever passes through torch's attention functions."""

import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cvattn.core.observed import Observed
from cvattn.maps.calls import AttentionCalls, GivenWeights, MultiHeadCall
from cvattn.maps.fast_path import ProjectedTokens, calls_inside, guard
from cvattn.maps.grids import Grid, Layout, find_layout
from cvattn.maps.heads import per_head, terms_per_head
from cvattn.maps.looks import is_ours, looks_like_attention
from cvattn.maps.running import Frame, RunningModules, in_backward
from cvattn.maps.windows import InWindows, in_windows

Call = Observed | GivenWeights | ProjectedTokens
Shown = Call | InWindows


class Keeper(Protocol):
    """Who keeps what is shown."""

    def begin_pass(self) -> None: ...

    def keep(self, module: nn.Module, seen: Shown, layout: Layout | None) -> Callable[[], None]:
        """Of a module, what its call shows and where that lies; what is returned writes it down."""


class ForeignCalls:
    """What the passes of a model show of attention that is not ours.

    Each call of ``F.scaled_dot_product_attention`` belongs to the module that was running. A
    softmax over the last of three or four dimensions is taken as weights (queries, keys) where it
    happens in a module that looks like attention, by its class or its name, and that calls no such
    function itself; where a pass shows nothing at all, of any module.

    Args:
        model: the whole.
        keeper: takes each call.
        softmaxes: take those of any module in any case.
        detach: whether weights have no gradients.
        grid: (H, W) of tokens that lie on no grid that is found.
    """

    def __init__(
        self, model: nn.Module, keeper: Keeper, *, softmaxes: bool, detach: bool, grid: Grid | None
    ) -> None:
        self._keeper = keeper
        self._softmaxes, self._detach, self._grid = softmaxes, detach, grid
        self._modules = dict(model.named_modules())
        self._names = {module: name for name, module in self._modules.items()}
        self._whole = Frame(model, ())  # while only parts of it are called
        self._shows = False  # this pass has shown something
        self._held: list[Callable[[], None]] = []  # softmaxes, if it shows nothing else
        self.running = RunningModules(self._names, self._begin, self._end)
        self.mode = AttentionCalls(self._call, self._softmax)

    def note_ours(self) -> None:
        """A block of ours has shown its call."""
        self._shows = True
        self._held.clear()

    def layout(self, queries: int, keys: int, *, is_cross: bool) -> Layout | None:
        """Of a call inside the module that is running."""
        return find_layout(self._around(), queries, keys, is_cross=is_cross, given=self._grid)

    def _begin(self, frame: Frame) -> None:
        if len(self.running.stack) == 1 and not in_backward():
            self._keeper.begin_pass()
            self._shows = False
            self._held.clear()
            images = [shape for shape in frame.shapes if len(shape) == 4]
            if images:
                whole = self._whole.module
                self._whole = Frame(whole, (torch.empty(images[0], device="meta"),))
        frame.guard = guard(frame.module, detach=self._detach)

    def _end(self, frame: Frame, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if output is None:  # it failed
            return
        around = self.running.stack
        found = None
        if frame.guard is not None:
            found = calls_inside(frame, args, kwargs, output, around)
        if found is not None:
            if around:
                around[-1].shows_calls = True
            self._show(*found, [*self._around(), frame])
        if not frame.shows_calls:
            self._write(frame.held)
        if not self.running.stack:
            self._whole.conv_grids += frame.conv_grids
            if not self._shows:
                self._write(self._held)

    def _write(self, held: list[Callable[[], None]]) -> None:
        if held:
            self._shows = True
        for write in held:
            write()
        held.clear()

    def _call(self, seen: Observed, call: MultiHeadCall | None) -> None:
        frames = self._frames()
        if not frames:
            return
        frame = frames[-1]
        if seen.query.is_nested:
            name = self._names[frame.module] or "the module itself"
            warnings.warn(f"{name}: attention of nested tensors is not looked into", stacklevel=2)
            return
        heads = _heads(frame.module)
        query, key, value = (
            per_head(each, heads, self._batch()) for each in (seen.query, seen.key, seen.value)
        )
        assert not callable(seen.terms)
        terms = terms_per_head(seen.terms, seen.query, query.shape[:2])
        seen = seen._replace(query=query, key=key, value=value, terms=terms)
        frame.shows_calls = True
        self._show(frame.module, self._with_kind(seen, frame.module, call), frames)

    def _softmax(self, output: Tensor, call: MultiHeadCall | None) -> None:
        frames = self._frames()
        if not frames:
            return
        depth = self._depth_of_attention(frames) if call is None else len(frames)
        inside = frames[: depth or len(frames)]
        if not depth and isinstance(inside[-1].module, nn.Softmax):
            inside = inside[:-1] or inside
        frame = inside[-1]
        if not depth and self._shows and not self._softmaxes:
            return
        heads, batch = _heads(frame.module), self._batch()
        if call is not None:  # which knows its heads, and whose batch need not come first
            heads, batch = call.num_heads, None
        seen = GivenWeights(output, lambda x: per_head(x, heads, batch))
        seen = self._with_kind(seen, frame.module, call)
        if call is not None or self._softmaxes:
            frame.shows_calls = True
            self._show(frame.module, seen, inside)
        else:
            held = frame.held if depth else self._held
            held.append(self._prepare(frame.module, seen, inside))

    def _show(self, module: nn.Module, seen: Call, frames: list[Frame]) -> None:
        self._shows = True
        self._held.clear()
        self._prepare(module, seen, frames)()

    def _prepare(self, module: nn.Module, seen: Call, frames: list[Frame]) -> Callable[[], None]:
        if isinstance(seen, (Observed, GivenWeights)):
            laid = in_windows(seen, frames, self._batch())
            if laid is not None:
                return self._keeper.keep(module, laid, laid.layout)
        batch, queries, keys = seen.sides
        layout = None
        if self._batch() in (None, batch):  # else each of the batch is a part of an image
            layout = find_layout(frames, queries, keys, is_cross=not seen.is_self, given=self._grid)
        of_others = queries != keys and (layout is None or layout.kv_pool == 1)
        if of_others and isinstance(seen, (Observed, GivenWeights)):
            seen = seen._replace(is_self=False)
        return self._keeper.keep(module, seen, layout)

    def _with_kind(self, seen: Any, module: nn.Module, call: MultiHeadCall | None) -> Any:
        """Keys come from the queries' tokens unless the call, the module or its name denies it."""
        if call is not None:
            return seen._replace(is_self=call.is_self)
        said = getattr(module, "is_cross_attention", False) is True
        named = f"{type(module).__name__}.{self._names[module].rpartition('.')[2]}"
        return seen._replace(is_self=not (said or "cross" in named.lower()))

    def _frames(self) -> list[Frame]:
        """The running modules of the model, innermost last; none inside a block of ours."""
        frames = self._around()
        return [] if any(is_ours(frame.module) for frame in frames) else frames

    def _around(self) -> list[Frame]:
        """The running modules, innermost last, behind those that the outermost is a part of."""
        stack = self.running.stack
        if not stack or stack[0].module is self._whole.module:
            return stack
        path = self._names[stack[0].module].split(".")
        parents = (self._modules[".".join(path[:end])] for end in range(1, len(path)))
        return [self._whole, *(Frame(parent, ()) for parent in parents), *stack]

    def _depth_of_attention(self, frames: list[Frame]) -> int:
        """Of the innermost module that looks like attention; 0 = there is none."""
        # The name of the whole says nothing of a softmax in one of its parts.
        for depth in range(len(frames), min(1, len(frames) - 1), -1):
            module = frames[depth - 1].module
            if not isinstance(module, nn.Softmax) and looks_like_attention(
                module, self._names[module]
            ):
                return depth
        return 0

    def _batch(self) -> int | None:
        """Images in this pass: what the outermost module was given first has so many."""
        frames = self._around()
        shapes = frames[0].shapes if frames else ()
        return shapes[0][0] if shapes and len(shapes[0]) else None


def _heads(module: Any) -> int | None:
    """How many a module says that it has."""
    for name in ("num_heads", "heads", "num_attention_heads", "n_heads", "n_head", "nhead"):
        heads = getattr(module, name, None)
        if isinstance(heads, int) and heads > 0:
            return heads
    return None

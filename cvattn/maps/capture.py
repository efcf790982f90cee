"""Attention weights from any forward pass, without touching the pass itself."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from cvattn.blocks import MapAttention
from cvattn.core import MultiHeadAttention
from cvattn.core.copies import running_uncompiled, uncompiled
from cvattn.core.observed import Observed
from cvattn.maps.attention_maps import AttentionMaps
from cvattn.maps.foreign import is_timm_attention, observe_timm, unseen_attention
from cvattn.maps.grids import Layout, token_layout, watch_grids

Rows = Sequence[int] | Tensor | None


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The attention blocks of a model by name, in order: ours, and those of timm's ViTs."""
    return {name: module for name, module in model.named_modules() if _is_seen(module)}


def _is_seen(module: nn.Module) -> bool:
    return isinstance(module, (MapAttention, MultiHeadAttention)) or is_timm_attention(module)


@contextmanager
def capture_attention(
    model: nn.Module,
    layers: str | Iterable[str] | None = None,
    rows: Rows = None,
    *,
    detach: bool = True,
) -> Iterator[AttentionMaps]:
    """Collect the attention weights of the forward passes run inside the ``with`` block.

    Each block shows the queries and keys of that very pass, whatever made them (adapters, norms,
    autocast); weights are computed from these beside the pass, which stays the same, bit for bit,
    and only for the rows that were asked for. A compiled model runs uncompiled inside the block.
    ``timm.layers.Attention``, fused or not, is looked at from outside.

    Args:
        model: any module that contains our attention blocks, or a ViT of timm. Other attention in
            it is not seen, and a warning names it.
        layers: name of a block, or several, as in ``model.named_modules()``; None = all. A block
            with several names is known by each.
        rows: query rows (token indices, y * W + x on maps); None = all.
        detach: without gradients. With False, losses of the weights reach the model's parameters;
            under activation checkpointing (``use_reentrant=False``) the backward pass then has to
            run inside the ``with`` block too.

    Yields:
        :class:`AttentionMaps`. A second forward pass replaces what the first one left. Of a block
        that runs several times in one pass the last run is there, a warning says so, and ``runs``
        has all. What activation checkpointing computes again in the backward pass does not count.

    Raises:
        ValueError: unknown layer names (with near matches), or a model without attention blocks;
            in the pass, ``detach=False`` where gradients are off, or a block whose forward is not
            its class's and shows nothing.
    """
    model = uncompiled(model)
    wanted = _wanted(model, layers)
    recorder = _Recorder(model, rows, detach)
    with ExitStack() as stack:
        for handle in (
            model.register_forward_pre_hook(recorder.start, prepend=True),
            model.register_forward_hook(recorder.end, always_call=True),
        ):
            stack.callback(handle.remove)
        stack.callback(watch_grids(model, recorder.grids))
        for name, block in wanted.items():
            observe = observe_timm if is_timm_attention(block) else _observe
            stack.callback(observe(block, recorder.keeper(name)))
        with running_uncompiled():
            yield recorder.maps


def _wanted(model: nn.Module, layers: str | Iterable[str] | None) -> dict[str, nn.Module]:
    found = attention_modules(model)
    unseen = unseen_attention(model, found.values())
    if not found:
        others = f"; it has {unseen}, which is not looked into" if unseen else ""
        raise ValueError(
            f"{type(model).__name__} has no attention blocks of cvattn and no "
            f"timm.layers.Attention{others}"
        )
    if layers is None:
        if unseen:
            warnings.warn(f"attention that is not looked into: {unseen}", stacklevel=5)
        return found
    everywhere = dict(model.named_modules(remove_duplicate=False))
    names = [layers] if isinstance(layers, str) else list(layers)
    for name in names:
        if name not in everywhere or not _is_seen(everywhere[name]):
            near = get_close_matches(name, found) or list(found)
            raise ValueError(f"no attention block {name!r}; did you mean {', '.join(near)}?")
    return {name: everywhere[name] for name in names}


class _Recorder:
    """Keeps what the blocks show, by name and by pass of the whole model."""

    def __init__(self, model: nn.Module, rows: Rows, detach: bool) -> None:
        self.maps = AttentionMaps()
        self.grids: dict[nn.Module, tuple[int, int]] = {}
        self._model = model
        self._rows = rows
        self._detach = detach
        self._depth = 0
        self._said: set[str] = set()

    def start(self, *_: object) -> None:
        if self._depth == 0:
            self.maps.runs.clear()
        self._depth += 1

    def end(self, *_: object) -> None:
        self._depth -= 1

    def keeper(self, name: str) -> Callable[[Observed], None]:
        return lambda seen: self._keep(name, seen)

    def _keep(self, name: str, seen: Observed) -> None:
        # Inside a backward pass: activation checkpointing runs its part of the model again, and
        # expects from it just the tensors that it saw the first time.
        again = torch._C._current_graph_task_id() != -1
        if again and self._detach:
            return
        if not self._detach and not torch.is_grad_enabled():
            raise ValueError(
                f"{name or 'the block'}: detach=False asks for weights with gradients, and these "
                "are off (torch.no_grad, or checkpoint(use_reentrant=True))"
            )
        with torch.set_grad_enabled(not self._detach):
            weights = seen.weights(self._rows)
        if not again:
            self._note(name, seen, weights.detach() if self._detach else weights)

    def _note(self, name: str, seen: Observed, weights: Tensor) -> None:
        maps, runs = self.maps, self.maps.runs.setdefault(name, [])
        if self._depth == 0:  # parts of the model are called by themselves: each call is a pass
            runs.clear()
        runs.append(weights)
        maps[name] = weights
        if len(runs) == 2 and name not in self._said:
            self._said.add(name)
            warnings.warn(
                f"{name} runs more than once in a pass: the map has its last run, "
                "maps.runs[name] all",
                stacklevel=2,
            )
        (maps.cross.discard if seen.is_self else maps.cross.add)(name)
        maps.layout.pop(name, None)  # of an earlier pass, maybe of other images
        layout = self._layout(name, seen)
        if layout is not None:
            maps.layout[name] = layout

    def _layout(self, name: str, seen: Observed) -> Layout | None:
        if seen.size is not None and seen.key_size is not None:
            return Layout(seen.size, seen.key_size, kv_pool=seen.kv_pool)
        if isinstance(self._model.get_submodule(name), MapAttention):
            return None  # its keys are tokens, or its positions no plane
        queries, keys = seen.query.shape[2], seen.key.shape[2]
        return token_layout(self._model, name, queries, keys, self.grids)


def _observe(block: Any, keep: Callable[[Observed], None]) -> Callable[[], None]:
    """Have a block of ours show its passes; what is returned ends it."""
    shown: list[bool] = []

    def show(seen: Observed) -> None:
        shown.append(True)
        keep(seen)

    def check(module: nn.Module, *_: object) -> None:
        if not shown:
            raise ValueError(
                f"{type(module).__name__} has a forward of its own that shows no queries and keys "
                "(it calls none of self.observers), so its weights cannot be captured"
            )
        shown.clear()

    block.observers = (*block.observers, show)
    handle = block.register_forward_hook(check)

    def end() -> None:
        handle.remove()
        block.observers = tuple(each for each in block.observers if each is not show)

    return end

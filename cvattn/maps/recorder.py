"""Keeps the weights of the passes of a model, by the names of its blocks."""

import warnings
from collections.abc import Callable, Iterable
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from cvattn.maps.attention_maps import AttentionMaps, Source
from cvattn.maps.calls import Rows
from cvattn.maps.foreign import Shown
from cvattn.maps.grids import Layout
from cvattn.maps.looks import looks_like_attention, unseen_attention
from cvattn.maps.running import in_backward


class Recorder:
    """Fills :class:`AttentionMaps` with what blocks show.

    Args:
        model: the whole.
        layers: names of the blocks that are kept; None = all, each by its first name.
        rows: query rows that are kept; None = all.
        detach: whether they have no gradients.

    Raises:
        ValueError: a name that no module of the model has.
    """

    def __init__(
        self, model: nn.Module, layers: Iterable[str] | None, rows: Rows, *, detach: bool
    ) -> None:
        self.maps = AttentionMaps()
        self._model, self._rows, self._detach = model, rows, detach
        self._layers = None if layers is None else list(layers)
        self._names = _names(model, self._layers)
        self._pass = 0
        self._pass_of: dict[str, int] = {}  # the latest in which a block ran
        self._said: set[str] = set()
        self._elsewhere: dict[nn.Module, None] = {}  # which showed attention that nobody asked for

    def begin_pass(self) -> None:
        """Of the model, or of parts of it that are called by themselves."""
        self._pass += 1

    def keep(self, module: nn.Module, seen: Shown, layout: Layout | None) -> Callable[[], None]:
        """Compute the weights now; what is returned writes them down."""
        names = self._names.get(module, ())
        if not names:
            self._elsewhere[module] = None
        # Activation checkpointing expects just the tensors that it saw the first time.
        again = in_backward()
        if not names or (again and self._detach):
            return _nothing
        if not self._detach and not torch.is_grad_enabled():
            raise ValueError(
                f"{names[0] or 'the block'}: detach=False asks for weights with gradients, and "
                "these are off (torch.no_grad, or checkpoint(use_reentrant=True))"
            )
        try:
            with torch.set_grad_enabled(not self._detach):
                weights = seen.weights(self._rows)
        except ValueError as error:  # rows that it does not have
            raise ValueError(
                f"{names[0] or 'the block'}: {error}; layers= chooses blocks"
            ) from error
        if again:
            return _nothing
        weights = weights.detach() if self._detach else weights

        def write() -> None:
            for name in names:
                self._note(name, seen, weights, layout)

        return write

    def _note(self, name: str, seen: Shown, weights: Tensor, layout: Layout | None) -> None:
        maps = self.maps
        if self._pass_of.get(name) != self._pass:
            self._pass_of[name], maps.runs[name] = self._pass, []
        runs = maps.runs[name]
        runs.append(weights)
        maps[name] = weights
        if not self._detach:
            rows = self._rows
            maps.sources[name] = Source(
                seen.output, lambda gradient: seen.weights_gradient(gradient, rows)
            )
        if len(runs) == 2 and name not in self._said:
            self._said.add(name)
            warnings.warn(
                f"{name} runs more than once in a pass: the map has its last run, "
                "maps.runs[name] all",
                stacklevel=2,
            )
        (maps.cross.discard if seen.is_self else maps.cross.add)(name)
        maps.layout.pop(name, None)  # of an earlier pass, maybe of other images
        if layout is not None:
            maps.layout[name] = layout

    def check(self, ran: set[nn.Module]) -> None:
        """Say what the passes did not show: an error if it was asked for, else a warning.

        Args:
            ran: the modules that did.

        Raises:
            ValueError: a layer that was asked for showed nothing; or nothing did.
        """
        missing = [name for name in self._layers or () if name not in self.maps]
        if missing:
            names = {module: name for name, module in self._model.named_modules()}
            seen = [*self.maps, *(names[module] for module in self._elsewhere)]
            near = get_close_matches(missing[0], seen, cutoff=0.3) or seen[:3]
            others = f"; it was in {', '.join(near)}" if near else ""
            raise ValueError(f"no attention was seen in {', '.join(missing)}{others}")
        parts = [self._model.get_submodule(name) for name in self.maps]
        unseen = unseen_attention(self._model, parts, ran)
        if not self.maps:
            others = f"; {unseen} showed none" if unseen else ""
            raise ValueError(
                f"the pass of {type(self._model).__name__} showed no attention: no block of "
                "cvattn, no call of F.scaled_dot_product_attention or "
                f"F.multi_head_attention_forward, no softmax of three or four dimensions{others}"
            )
        if unseen and self._layers is None:
            warnings.warn(f"attention that showed no weights: {unseen}", stacklevel=4)


def _names(model: nn.Module, layers: list[str] | None) -> dict[nn.Module, list[str]]:
    """The names under which each module is kept."""
    if layers is None:
        return {module: [name] for name, module in model.named_modules()}
    everywhere = dict(model.named_modules(remove_duplicate=False))
    found: dict[nn.Module, list[str]] = {}
    for name in layers:
        if name not in everywhere:
            names = [name for name, module in everywhere.items() if looks_like_attention(module)]
            near = get_close_matches(name, names or everywhere) or (names or list(everywhere))[:3]
            raise ValueError(f"no module {name!r}; did you mean {', '.join(near)}?")
        found.setdefault(everywhere[name], []).append(name)
    return found


def _nothing() -> None: ...

"""Attention that others compute window by window, laid back onto the map it came from."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cvattn.core.attention import attention_weights
from cvattn.core.attention.reference import check_rows
from cvattn.core.memory import check_fits
from cvattn.core.observed import Observed
from cvattn.maps.calls import GivenWeights, Rows
from cvattn.maps.grids import Layout, maps_given_to
from cvattn.maps.running import Frame

Pair = tuple[int, int]


class InWindows(NamedTuple):
    """A call whose batch is all windows of all images, seen as one of positions of the map.

    What a query gives to padding is left out of its row.

    Attributes:
        seen: the call, (B * windows, heads, n, n).
        places: (windows, n), the position y * W + x of each place in a window; -1 = padding.
        grid: (H, W) of the map.
    """

    seen: Observed | GivenWeights
    places: Tensor
    grid: Pair

    @property
    def output(self) -> Tensor:
        return self.seen.output

    @property
    def is_self(self) -> bool:
        return True

    @property
    def layout(self) -> Layout:
        return Layout(self.grid, self.grid)

    def weights(self, rows: Rows = None) -> Tensor:
        """(B, heads, H*W or len(rows), H*W), 0 outside of a query's window."""
        chosen, windows = self._chosen(rows)
        groups = self._groups(windows)
        if isinstance(self.seen, GivenWeights):
            weights = self.seen.weights().index_select(0, groups)
        else:
            count, terms = self.seen.query.shape[0], self.seen.terms
            assert not callable(terms)
            of_each = {
                name: term.index_select(0, groups)
                for name, term in terms.items()
                if isinstance(term, Tensor) and term.ndim == 4 and term.shape[0] == count
            }
            query, key = (x.index_select(0, groups) for x in (self.seen.query, self.seen.key))
            weights = attention_weights(query, key, **{**terms, **of_each})
        return self._on_map(weights, windows, chosen)

    def weights_gradient(self, output_gradient: Tensor, rows: Rows = None) -> Tensor:
        chosen, windows = self._chosen(rows)
        gradient = self.seen.weights_gradient(output_gradient)
        return self._on_map(gradient.index_select(0, self._groups(windows)), windows, chosen)

    def _chosen(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """The rows, and the windows that they are in."""
        positions, device = self.grid[0] * self.grid[1], self.places.device
        everything = torch.arange(positions, device=device)
        chosen = everything if rows is None else check_rows(rows, positions, device)
        inside = torch.isin(self.places, chosen).any(-1)
        return chosen, inside.nonzero().flatten()

    def _groups(self, windows: Tensor) -> Tensor:
        """Where the windows of all images are in the batch."""
        images = torch.arange(self._images, device=windows.device)
        return (images[:, None] * len(self.places) + windows).flatten()

    @property
    def _images(self) -> int:
        return self.seen.sides[0] // len(self.places)

    def _on_map(self, weights: Tensor, windows: Tensor, rows: Tensor) -> Tensor:
        """(B * windows, heads, n, n) -> (B, heads, rows, H*W)."""
        positions = self.grid[0] * self.grid[1]
        places = self.places[windows]
        count = weights.shape[1] * self._images * len(windows) * weights.shape[2] * positions
        check_fits(
            2 * count * weights.element_size(),
            weights.device,
            f"Windows of a map of {self.grid[0]} x {self.grid[1]}, laid back onto it",
            "Ask for some rows (rows=[...]), some blocks (layers=[...]) or fewer images.",
        )
        weights = weights.unflatten(0, (self._images, len(windows)))
        # A last column for what padding is given.
        keys = places.where(places >= 0, torch.full_like(places, positions))
        total = weights.new_zeros(*weights.shape[:-1], positions + 1)
        index = keys[None, :, None, None, :].expand_as(weights)
        rows_of_windows = total.scatter(-1, index, weights)[..., :positions]
        # Each position is in one window, at one place.
        flat = places.flatten()
        where = torch.full((positions,), -1, device=flat.device)
        real = flat >= 0
        where[flat[real]] = real.nonzero().flatten()
        return rows_of_windows.movedim(2, 1).flatten(2, 3).index_select(2, where[rows])


def in_windows(
    seen: Observed | GivenWeights, frames: Sequence[Frame], batch: int | None
) -> InWindows | None:
    """The call laid back onto a map, if a module around it says that it cuts one into windows.

    By ``window_size`` and ``shift_size`` (Swin of timm, torchvision, transformers, MONAI) or
    ``partition_size`` and ``partition_block`` (MaxViT of timm).
    """
    groups, queries, keys = seen.sides
    if queries != keys:
        return None
    for depth in range(len(frames), 0, -1):
        cut = _cutting(frames[depth - 1].module)
        if cut is None:
            continue
        for grid in maps_given_to(frames[:depth]):
            for places in cut(grid):
                if places.shape[1] == queries and groups == len(places) * (
                    batch or groups // len(places)
                ):
                    return InWindows(seen, places.to(seen.output.device), grid)
        return None
    return None


Cut = Callable[[Pair], list[Tensor]]  # ways in which a map may have been cut


def _cutting(module: Any) -> Cut | None:
    """How a module cuts maps, as far as it says so."""
    if hasattr(module, "partition_size") and hasattr(module, "partition_block"):
        side = _pair(module.partition_size)
        if side is None:
            return None
        return partial(_shifted if module.partition_block else _strided, side)
    side, shift = (_pair(getattr(module, name, None)) for name in ("window_size", "shift_size"))
    if side is None or shift is None:
        return None
    rolls_first = any(kind.__module__.startswith("timm.") for kind in type(module).__mro__)
    return partial(_shifted, side, shift=shift, rolls_first=rolls_first)


def _pair(size: Any) -> Pair | None:
    if isinstance(size, int):
        size = (size, size)
    return tuple(size) if isinstance(size, (list, tuple)) and len(size) == 2 else None


def _shifted(
    window: Pair, grid: Pair, *, shift: Pair = (0, 0), rolls_first: bool = False
) -> list[Tensor]:
    """(windows, n): the map, padded, rolled up and to the left by the shift, and cut.

    An axis shorter than its window is one window: with padding, or of its own length.
    """
    found = []
    for sides in {window: None, _shorter(window, grid): None}:
        down, right = (-size % side for size, side in zip(grid, sides, strict=True))
        rolls = [
            0 if side >= size and not rolls_first else -by
            for by, side, size in zip(shift, sides, grid, strict=True)
        ]
        places = torch.arange(grid[0] * grid[1]).view(grid)
        if rolls_first:
            places = F.pad(places.roll(rolls, (0, 1)), (0, right, 0, down), value=-1)
        else:
            places = F.pad(places, (0, right, 0, down), value=-1).roll(rolls, (0, 1))
        parts = places.unflatten(1, (-1, sides[1])).unflatten(0, (-1, sides[0]))
        found.append(parts.transpose(1, 2).flatten(2).flatten(0, 1))
    return found


def _shorter(window: Pair, grid: Pair) -> Pair:
    return min(window[0], grid[0]), min(window[1], grid[1])


def _strided(parts: Pair, grid: Pair) -> list[Tensor]:
    """(groups, n): each takes positions far from each other, of all the map."""
    if any(size % side for size, side in zip(grid, parts, strict=True)):
        return []
    places = torch.arange(grid[0] * grid[1]).view(parts[0], grid[0] // parts[0], parts[1], -1)
    return [places.permute(1, 3, 0, 2).flatten(2).flatten(0, 1)]

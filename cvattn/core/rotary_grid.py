"""Rotary positions of tokens on a grid: half of the pairs turn by the row, half by the column."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cvattn.core.rotary import EXACT, Pairs, RotaryTable, Rotation, as_table, frequencies

Coordinates = Literal["index", "centered"]


def grid_coordinates(
    grid: tuple[int, int],
    coordinates: Coordinates = "index",
    *,
    reference: tuple[int, int] | None = None,
    offset: float = 0.0,
) -> Tensor:
    """(H*W, 2) float64: row and column of each token, row by row, as the angles count them.

    Args:
        grid: (H, W).
        coordinates: "index" = 0, 1, 2, ...; "centered" = the middles of the tokens, the whole
            height and the whole width being -1 to 1, times 2 pi (DINOv3).
        reference: for "index", the grid that positions were trained on: others are spread over its
            height and width (EVA; timm's ``ref_feat_shape``). None = they are counted as they are.
        offset: added to the indices before all else (timm's ``grid_offset``).
    """
    axes = []
    for axis, size in enumerate(grid):
        index = torch.arange(size, **EXACT) + offset
        if coordinates == "centered":
            axes.append(2 * math.pi * (2 * (index + 0.5) / size - 1))
        else:
            axes.append(index if reference is None else index * (reference[axis] / size))
    return torch.cartesian_prod(*axes)


class AxialRotary(RotaryTable):
    """Rotary positions of a grid: ``rotary(grid)`` -> :class:`Rotation`, row by row.

    The first half of the pairs is turned by the row, the second half by the column, pair i of
    either by coordinate * theta^(-4i / head_dim). ``coordinates="index"`` with interleaved pairs is
    that of EVA-02 (Fang et al., 2023; timm's ``RotaryEmbeddingCat``, there with ``reference``);
    ``coordinates="centered", theta=100, pairs="halves"`` that of DINOv3 (Simeoni et al., 2025;
    timm's ``RotaryEmbeddingDinoV3`` with ``normalize_coords="separate"``). Both compute theirs in
    float32, ours is computed in float64.

    Args:
        head_dim: width of one head; divisible by 4.
        grid: (H, W), whose table is kept ready; others are computed when they come.
        theta: wavelengths go from 2 pi towards theta * 2 pi.
        pairs: which numbers of a head are a pair, see :class:`Rotation`.
        coordinates, reference, offset: as in :func:`grid_coordinates`.
        prefix: tokens before those of the grid (class token, registers), which are not turned.
        device: of the table.

    Raises:
        ValueError: a ``head_dim`` that 4 does not divide, unknown ``pairs`` or ``coordinates``, a
            ``theta`` that is not above 0; a reference for centered coordinates.
    """

    def __init__(
        self,
        head_dim: int,
        grid: tuple[int, int],
        *,
        theta: float = 100.0,
        pairs: Pairs = "interleaved",
        coordinates: Coordinates = "index",
        reference: tuple[int, int] | None = None,
        offset: float = 0.0,
        prefix: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(head_dim, theta, pairs, divisor=4)
        if coordinates not in ("index", "centered"):
            raise ValueError(f"coordinates={coordinates!r}; expected 'index' or 'centered'")
        if coordinates == "centered" and reference is not None:
            raise ValueError("reference is for coordinates='index'; centered ones need none")
        self.grid = (grid[0], grid[1])
        self.coordinates, self.reference, self.offset = coordinates, reference, offset
        self.prefix = prefix
        self._register_table(device=device)

    def _exact(self) -> Tensor:
        return self._of(self.grid)

    def _of(self, grid: tuple[int, int]) -> Tensor:
        where = grid_coordinates(
            grid, self.coordinates, reference=self.reference, offset=self.offset
        )
        angles = where[:, :, None] * frequencies(self.head_dim // 4, self.theta)
        # Turned by nothing: cosine 1, sine 0.
        return as_table(F.pad(angles.flatten(1), (0, 0, self.prefix, 0)))

    def forward(self, grid: tuple[int, int]) -> Rotation:
        """For tokens that lie on ``grid`` row by row, after the prefix."""
        table = self.table
        if (grid[0], grid[1]) != self.grid:
            table = self._of(grid).to(table.dtype).to(table.device)
        return Rotation(table[0], table[1], self.pairs)

    def resample(self, grid: tuple[int, int]) -> None:
        """Keep the table of another (H, W) ready, in place."""
        self.grid = (int(grid[0]), int(grid[1]))
        self.table = self._exact().to(self.table.dtype).to(self.table.device)

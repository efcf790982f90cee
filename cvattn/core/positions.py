"""Where a token is: sinusoidal in one and two dimensions, and a learned grid that can be resampled.

All are added to tokens (B, N, D). Images are laid out row by row: token index = row * W + column.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvattn.core.initial_values import ComputedTable, replace_values

# How the formulas are computed: equal on all devices, of which some have no float64.
_EXACT: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}


def sinusoidal_1d(
    length: int, dim: int, *, start: int = 0, device: torch.device | None = None
) -> Tensor:
    """(length, dim) of sines (even columns) and cosines (odd columns); any width, odd ones too.

    Vaswani et al. (2017), section 3.5: column pair i has wavelength 2*pi * 10000^(2i/dim). An odd
    ``dim`` ends with a sine that has no cosine.
    """
    position = torch.arange(start, start + length, **_EXACT)
    even = torch.arange(0, dim, 2, **_EXACT)
    angle = position[:, None] * torch.exp(even * (-math.log(10000.0) / dim))
    table = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
    return _moved(table[:, :dim], device)


def sincos_2d(height: int, width: int, dim: int, *, device: torch.device | None = None) -> Tensor:
    """(H*W, dim): the first half of the columns encodes the row, the second half the column.

    Each half is [sines, cosines] with wavelengths from 2*pi towards 10000 * 2*pi, as in the
    released code of He et al., "Masked Autoencoders" (2021), with the row first.

    Raises:
        ValueError: ``dim`` not divisible by 4.
    """
    if dim % 4:
        raise ValueError(f"dim={dim} must be divisible by 4: sines and cosines of row and column")
    quarter = torch.arange(dim // 4, **_EXACT) / (dim // 4)
    frequency = 10000.0**-quarter
    halves = [
        torch.cat([angle.sin(), angle.cos()], dim=-1)
        for angle in (torch.arange(size, **_EXACT)[:, None] * frequency for size in (height, width))
    ]
    rows = halves[0][:, None].expand(-1, width, -1)
    columns = halves[1][None].expand(height, -1, -1)
    return _moved(torch.cat([rows, columns], dim=-1).flatten(0, 1), device)


def _moved(table: Tensor, device: torch.device | None) -> Tensor:
    """In the default dtype, on the device or the default one."""
    device = torch.get_default_device() if device is None else device
    return table.to(device=device, dtype=torch.get_default_dtype())


class SinusoidalPositions(ComputedTable):
    """Adds :func:`sinusoidal_1d` to (B, N, D). Nothing is learned or stored in the state.

    Args:
        embed_dim: width D of a token.
        max_length: size of the table kept ready; longer sequences are computed when they come.
    """

    table: Tensor

    def __init__(self, embed_dim: int, *, max_length: int = 512) -> None:
        super().__init__()
        self._table_size = (max_length, embed_dim)
        self._register_table()

    def _compute_table(self) -> Tensor:
        return sinusoidal_1d(*self._table_size)

    def forward(self, x: Tensor, *, lengths: Tensor | None = None, start: int = 0) -> Tensor:
        """x (B, N, D) -> (B, N, D).

        Args:
            lengths: (B,); positions at and beyond a sample's length add 0 instead.
            start: position of the first token, for sequences that are fed piece by piece.
        """
        size, dim = x.shape[-2:]
        if dim != self.table.shape[1]:
            raise ValueError(f"tokens are {dim} wide, positions {self.table.shape[1]}")
        if start + size <= self.table.shape[0]:
            positions = self.table[start : start + size]
        else:
            positions = sinusoidal_1d(size, dim, start=start, device=x.device)
        positions = positions.to(x)
        if lengths is not None:
            real = torch.arange(size, device=x.device) < lengths[:, None]
            positions = positions * real[..., None]
        return x + positions


def resample_grid(table: Tensor, grid: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Positions (H*W, D) of one grid for another (H, W): bicubic with antialiasing, as an image."""
    if new == grid:
        return table
    image = table.unflatten(0, grid).permute(2, 0, 1)[None]
    image = image.to(torch.promote_types(image.dtype, torch.float32))  # half precision: no kernel
    image = F.interpolate(image, size=new, mode="bicubic", antialias=True)
    return image[0].flatten(1).T.to(table.dtype)


class LearnedGridPositions(nn.Module):
    """Adds a learned (H, W) grid of positions to (B, H*W, D), as ViT does.

    Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021). The grid is part of the state, so a
    table for another grid is refused rather than added with rows and columns misplaced.

    Args:
        embed_dim: width D of a token.
        grid: (H, W) of the tokens.
        device, dtype: of the table.
    """

    grid: Tensor

    def __init__(
        self,
        embed_dim: int,
        grid: tuple[int, int],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        height, width = grid
        table = torch.empty(height * width, embed_dim, device=device, dtype=dtype)
        self.table = nn.Parameter(table)
        self.register_buffer("grid", torch.empty(2, dtype=torch.int64, device=device))
        # Kept as plain numbers too: a forward pass must not read a device tensor.
        self._size = (height, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the table anew."""
        nn.init.trunc_normal_(self.table, std=0.02)
        self.grid.copy_(torch.tensor(self._size))

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not to be decayed (also what timm's optimisers ask for)."""
        return {"table"}

    def forward(self, x: Tensor, *, grid: tuple[int, int]) -> Tensor:
        """x (B, H*W, D), whose tokens lie on ``grid`` -> (B, H*W, D).

        In training mode the table is interpolated for another grid than its own, each time anew
        (:func:`resample_grid`); in eval mode another grid raises.
        """
        size = (grid[0], grid[1])
        if size != self._size and not self.training:
            raise ValueError(
                f"positions were learned on a grid of {self._size} tokens (H, W), the input has "
                f"{size}; resize the image, or call resample({size}) first"
            )
        # In the tokens' type: added in float32, every layer after would first cast its input down.
        return x + resample_grid(self.table, self._size, size).to(x.dtype)

    @torch.no_grad()
    def resample(self, grid: tuple[int, int]) -> None:
        """Interpolate the table to another (H, W), bicubic with antialiasing, in place.

        The parameter stays the one that an optimiser knows; what that has gathered of it (momentum,
        of the old size) has to go: make the optimiser anew.
        """
        new = (int(grid[0]), int(grid[1]))
        if new == self._size:
            return
        table = resample_grid(self.table.detach(), self._size, new).contiguous()
        replace_values(self.table, table)
        self.grid.copy_(torch.tensor(new))
        self._size = new

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        given = state_dict.get(prefix + "grid")
        if given is not None and tuple(given.tolist()) != self._size:
            raise ValueError(
                f"{prefix}grid: the state was learned on a grid of {tuple(given.tolist())} tokens "
                f"(H, W), this model has {self._size}; build the model for that image size, load, "
                f"and then call resample({self._size})"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

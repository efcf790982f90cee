"""Where a key lies as seen from a query: a learned bias on the scores of tokens on a grid."""

import math

import torch
from torch import Tensor, nn

from cvattn.core.initial_values import replace_values


class RelativeGridBias(nn.Module):
    """A learned number for each head and each offset (rows, columns) from query to key.

    Liu et al., "Swin Transformer" (2021), section 3.2, here for a whole map: an offset has the same
    bias wherever it lies, so what is learned in one place serves in all. Unlike there each head
    begins local, looking 0.7 tokens beside its query in a direction of its own, as in d'Ascoli et
    al., "ConViT" (2021), attention begins as a convolution: it learns when to look further.

    Args:
        num_heads: of the attention that it is added to.
        grid: (H, W) of the tokens. On a larger one, offsets beyond the table have the bias of the
            nearest that is in it.
        device, dtype: of the table.

    Shape:
        ``bias(grid)`` -> (num_heads, H*W, H*W), rows are queries.
    """

    def __init__(
        self,
        num_heads: int,
        grid: tuple[int, int],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        height, width = grid
        shape = (num_heads, 2 * height - 1, 2 * width - 1)
        self.table = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each head's table is a parabola that falls to -6 at about 3.5 tokens."""
        heads, rows, columns = self.table.shape
        row = torch.arange(rows).view(-1, 1) - rows // 2
        column = torch.arange(columns).view(1, -1) - columns // 2
        with torch.no_grad():
            for head, table in enumerate(self.table):
                angle = 2 * math.pi * (head + 0.5) / heads
                far = (row - math.sin(angle) / math.sqrt(2)) ** 2
                far = far + (column - math.cos(angle) / math.sqrt(2)) ** 2
                table.copy_((-far / 2).clamp(min=-6.0))

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not to be decayed (also what timm's optimisers ask for)."""
        return {"table"}

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """For tokens that lie on ``grid`` row by row."""
        _, rows, columns = self.table.shape
        row = _index(_offsets(grid[0], self.table.device), rows)
        column = _index(_offsets(grid[1], self.table.device), columns)
        bias = self.table[:, row[:, None, :, None], column[None, :, None, :]]
        return bias.flatten(3).flatten(1, 2)

    @torch.no_grad()
    def resample(self, grid: tuple[int, int]) -> None:
        """Make it one for another (H, W), in place; the parameter stays the same object."""
        _, rows, columns = self.table.shape
        row = _index(_offsets(2 * grid[0] - 1, self.table.device)[grid[0] - 1], rows)
        column = _index(_offsets(2 * grid[1] - 1, self.table.device)[grid[1] - 1], columns)
        table = self.table.detach()[:, row[:, None], column]
        replace_values(self.table, table)

    def extra_repr(self) -> str:
        heads, rows, columns = self.table.shape
        return f"{heads}, grid={(rows + 1) // 2, (columns + 1) // 2}"


def _offsets(size: int, device: torch.device) -> Tensor:
    """(queries, keys): how far the key is behind the query along one axis."""
    index = torch.arange(size, device=device)
    return index[None] - index[:, None]


def _index(offset: Tensor, size: int) -> Tensor:
    """Where the nearest offset stands in a table of ``size`` of them, with 0 in its middle."""
    return offset.clamp(-(size // 2), size // 2) + size // 2

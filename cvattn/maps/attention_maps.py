"""What :func:`cvattn.maps.capture_attention` yields."""

from torch import Tensor

from cvattn.maps.grids import Layout, spread


class AttentionMaps(dict[str, Tensor]):
    """``{module name: weights (B, heads, rows, keys)}``, filled by the forward pass.

    Where positions lie on an image, ``layout[name]`` (:class:`cvattn.maps.grids.Layout`) knows the
    (H, W) grids of queries and keys, row by row, and the tokens before them. It is known for
    feature-map blocks and for ViTs, ours and timm's; other tokens need not be an image.

    Attributes:
        layout: {module name: where its queries and keys lie}.
        query_grid, key_grid: {module name: (H, W)}, out of the same.
        runs: {module name: weights of each of its runs in the latest pass of the model, first to
            last}; more than one where a block is used again (shared layers). The mapping itself has
            the last.
        cross: names of blocks whose keys come from other tokens than their queries.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layout: dict[str, Layout] = {}
        self.runs: dict[str, list[Tensor]] = {}
        self.cross: set[str] = set()

    @property
    def query_grid(self) -> dict[str, tuple[int, int]]:
        return {name: layout.query_grid for name, layout in self.layout.items()}

    @property
    def key_grid(self) -> dict[str, tuple[int, int]]:
        return {name: layout.key_grid for name, layout in self.layout.items()}

    def on_grid(self, name: str) -> Tensor:
        """The weights of a block as pictures: (B, heads, rows, H, W) on the grid of its queries.

        Prefix tokens (a class token) are cut off the keys; what a pooled key has is spread evenly
        over the positions that it was pooled from.

        Raises:
            ValueError: nothing was captured under that name, or its keys lie on no grid.
        """
        if name not in self:
            raise ValueError(f"no weights of {name!r}; captured: {', '.join(self) or 'nothing'}")
        if name not in self.layout:
            raise ValueError(f"{name}: its tokens lie on no grid that is known")
        return spread(self[name], self.layout[name])

"""What :func:`cvattn.maps.capture_attention` yields."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cvattn.maps.grids import Layout, spread


class Source(NamedTuple):
    """Where the gradient of a block's weights comes from.

    Attributes:
        tensor: of the pass; what its gradient is known of.
        to_weights: that gradient -> the gradient of the captured weights.
    """

    tensor: Tensor
    to_weights: Callable[[Tensor], Tensor]


class AttentionMaps(dict[str, Tensor]):
    """``{module name: weights (B, heads, rows, keys)}``, filled by the forward pass.

    Where positions lie on an image, ``layout[name]`` (:class:`cvattn.maps.grids.Layout`) knows the
    (H, W) grids of queries and keys, row by row, and the tokens before them. It is found where the
    network says it, or where a map or patches of as many positions came by; other tokens need not
    be an image.

    Attributes:
        layout: {module name: where its queries and keys lie}.
        query_grid, key_grid: {module name: (H, W)}, out of the same.
        runs: {module name: weights of each of its runs in the latest pass of the model, first to
            last}; more than one where a block is used again (shared layers). The mapping itself has
            the last.
        cross: names of blocks whose keys come from other tokens than their queries.
        sources: of captures with ``detach=False``: what :meth:`gradients` needs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layout: dict[str, Layout] = {}
        self.runs: dict[str, list[Tensor]] = {}
        self.cross: set[str] = set()
        self.sources: dict[str, Source] = {}

    def gradients(self, score: Tensor) -> dict[str, Tensor]:
        """d score / d weights of each block, shaped as its weights.

        Those of the weights inside the pass, in eval mode: of a block that ran several times, in
        its last run. The graph is kept, for other scores and for the backward pass.

        Args:
            score: a number computed from what the model gave inside the ``with`` block; of a batch
                the sum, such as ``logits[:, 3].sum()``.

        Raises:
            ValueError: a capture without ``detach=False``, a score of another shape, or one that
                no gradient leads back from (a model without parameters that require gradients:
                let its input require them).
        """
        if len(self.sources) < len(self) or not self:
            raise ValueError("gradients of weights need capture_attention(model, detach=False)")
        if score.numel() != 1:
            raise ValueError(
                f"score has shape {tuple(score.shape)}; expected one number, such as "
                "logits[:, 3].sum()"
            )
        tensors = [source.tensor for source in self.sources.values()]
        if not score.requires_grad or not all(tensor.requires_grad for tensor in tensors):
            raise ValueError(
                "no gradient leads from the score to the weights: gradients are off, or nothing in "
                "the model requires them; images.requires_grad_() does it too"
            )
        found = torch.autograd.grad(
            score.sum(), tensors, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        with torch.no_grad():
            return {
                name: source.to_weights(gradient)
                for (name, source), gradient in zip(self.sources.items(), found, strict=True)
            }

    @property
    def query_grid(self) -> dict[str, tuple[int, int] | None]:
        return {name: layout.query_grid for name, layout in self.layout.items()}

    @property
    def key_grid(self) -> dict[str, tuple[int, int] | None]:
        return {name: layout.key_grid for name, layout in self.layout.items()}

    def on_grid(self, name: str) -> Tensor:
        """The weights of a block as pictures: (B, heads, rows, H, W) on the grid of its queries.

        Prefix tokens (a class token) are cut off the keys; what a pooled key has is spread evenly
        over the positions that it was pooled from.

        Raises:
            ValueError: nothing was captured under that name, or its keys lie on no grid.
        """
        layout = self._layout_of(name)
        if layout.key_grid is None:
            raise ValueError(
                f"{name}: its keys lie on no grid; maps.of_keys({name!r}) shows who looks at them"
            )
        return spread(self[name], layout)

    def of_keys(self, name: str) -> Tensor:
        """Who looks at each key of a block, such as a word: (B, heads, keys, H, W).

        What the positions of the grid of its queries give to it; prefix tokens are cut off.

        Raises:
            ValueError: nothing was captured under that name, its queries lie on no grid, or only
                some rows were captured.
        """
        layout, weights = self._layout_of(name), self[name]
        if layout.query_grid is None:
            raise ValueError(f"{name}: its queries lie on no grid")
        height, width = layout.query_grid
        if weights.shape[2] != layout.num_prefix_tokens + height * width:
            raise ValueError(f"{name}: {weights.shape[2]} rows were captured; all are needed")
        return weights[:, :, layout.num_prefix_tokens :].mT.unflatten(-1, (height, width))

    def _layout_of(self, name: str) -> Layout:
        if name not in self:
            raise ValueError(f"no weights of {name!r}; captured: {', '.join(self) or 'nothing'}")
        if name not in self.layout:
            raise ValueError(f"{name}: its tokens lie on no grid that is known")
        return self.layout[name]

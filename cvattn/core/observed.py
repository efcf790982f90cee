"""What an attention block tells those who look at its passes: its call of attention, as it was.

Looking is no part of the pass: the output comes from the same operators, whoever looks, and what an
observer computes has a graph of its own, or none.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from cvattn.core.attention import attention_weights
from cvattn.core.attention.reference import check_rows

Terms = Mapping[str, Any]


class Observed(NamedTuple):
    """One call of attention inside a block.

    Attributes:
        query: (B, heads, L, E).
        key: (B, heads, S, E).
        value: (B, heads, S, Ev).
        output: (B, heads, L, Ev) or of another shape, the very tensor that the pass goes on with.
        terms: the rest of what :func:`cvattn.core.attention_weights` takes (mask, bias, causality,
            scale); or, where a mask of all pairs would be large (local forms), a function that
            gives them for query rows, (rows,) of indices or None for all.
        is_self: keys come from the tokens that ask, not from others.
        size: (H, W) of a feature map whose positions the queries are, row by row; None for tokens.
        key_size: the same of the keys.
        kv_pool: side of the square of positions that a key was pooled from.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    terms: Terms | Callable[[Tensor | None], Terms]
    is_self: bool = True
    size: tuple[int, int] | None = None
    key_size: tuple[int, int] | None = None
    kv_pool: int = 1

    @property
    def sides(self) -> tuple[int, int, int]:
        """(B, L, S)."""
        return self.query.shape[0], self.query.shape[2], self.key.shape[2]

    def weights(self, rows: Sequence[int] | Tensor | None = None) -> Tensor:
        """The weights of that call, (B, heads, L or len(rows), S)."""
        if not callable(self.terms):
            return attention_weights(self.query, self.key, rows=rows, **self.terms)
        query = self.query
        if rows is not None:
            rows = check_rows(rows, query.shape[2], query.device)
            query = query.index_select(2, rows)
        return attention_weights(query, self.key, **self.terms(rows))

    def weights_gradient(
        self, output_gradient: Tensor, rows: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """d score / d weights out of d score / d output: (B, heads, L or len(rows), S).

        output = weights V, so it is d score / d output V^T: no pass needs to hold the weights.
        Without dropout of weights.
        """
        output_gradient = output_gradient.reshape(*self.query.shape[:3], -1)
        if rows is not None:
            rows = check_rows(rows, output_gradient.shape[2], output_gradient.device)
            output_gradient = output_gradient.index_select(2, rows)
        return output_gradient @ self.value.to(output_gradient.dtype).mT


# A block calls each of its ``observers`` in every pass. cvattn.maps.capture_attention sets them.
Observers = tuple[Callable[[Observed], None], ...]

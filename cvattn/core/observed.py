"""What an attention block tells those who look at its passes: queries and keys as they were used.

Looking is no part of the pass: the output comes from the same operators, whoever looks, and what an
observer computes has a graph of its own, or none.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor


class Observed(NamedTuple):
    """One call of attention inside a block.

    Attributes:
        query: (B, heads, L, E).
        key: (B, heads, S, E).
        terms: the rest of what :func:`cvattn.core.attention_weights` takes (mask, bias, causality,
            scale).
        is_self: keys come from the tokens that ask, not from others.
        size: (H, W) of a feature map whose positions the queries are, row by row; None for tokens.
    """

    query: Tensor
    key: Tensor
    terms: Mapping[str, Any]
    is_self: bool = True
    size: tuple[int, int] | None = None


# A block calls each of its ``observers`` in every pass. cvattn.maps.capture_attention sets them.
Observers = tuple[Callable[[Observed], None], ...]

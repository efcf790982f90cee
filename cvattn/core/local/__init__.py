"""Attention of each position of a map to some others, in time and memory linear in positions."""

from cvattn.core.attention.criss_cross import criss_cross_attention
from cvattn.core.local.neighborhood import neighborhood_attention
from cvattn.core.local.window import window_attention

__all__ = ["criss_cross_attention", "neighborhood_attention", "window_attention"]

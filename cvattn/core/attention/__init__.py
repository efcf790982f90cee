"""Scaled dot-product attention: the specification, the fused routes and the plan that chooses.

The only room where a softmax over keys is written.
"""

from cvattn.core.attention.plan import SCORES_BOUND, Route, attention, choose_route
from cvattn.core.attention.reference import attention_weights, reference_attention

__all__ = [
    "SCORES_BOUND",
    "Route",
    "attention",
    "attention_weights",
    "choose_route",
    "reference_attention",
]

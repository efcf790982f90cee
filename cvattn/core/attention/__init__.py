"""Scaled dot-product attention: the specification, the fused routes and the plan that chooses.

The only package where a softmax over keys is written.
"""

from cvattn.core.attention.attend import attention
from cvattn.core.attention.call import AttentionCall
from cvattn.core.attention.plan import SCORES_BOUND, Route, choose_route
from cvattn.core.attention.reference import attention_weights, reference_attention
from cvattn.core.attention.routing import record_routes, use_route

__all__ = [
    "SCORES_BOUND",
    "AttentionCall",
    "Route",
    "attention",
    "attention_weights",
    "choose_route",
    "record_routes",
    "reference_attention",
    "use_route",
]

"""What a network costs before it runs: operations, parameters, memory, and the way of attention."""

from cvattn.cost.attention import AttentionCost, explain_attention
from cvattn.cost.counting import count_macs, count_parameters, training_pflop
from cvattn.cost.memory import predict_peak

__all__ = [
    "AttentionCost",
    "count_macs",
    "count_parameters",
    "explain_attention",
    "predict_peak",
    "training_pflop",
]

"""Looking inside: which positions attend to which."""

from cvattn.maps.attention_maps import AttentionMaps
from cvattn.maps.capture import attention_modules, capture_attention
from cvattn.maps.heat import attention_heat, heat_on_image, overlay, rollout_heat
from cvattn.maps.measures import attention_distance, attention_entropy
from cvattn.maps.rollout import attention_relevance, attention_rollout

__all__ = [
    "AttentionMaps",
    "attention_distance",
    "attention_entropy",
    "attention_heat",
    "attention_modules",
    "attention_relevance",
    "attention_rollout",
    "capture_attention",
    "heat_on_image",
    "overlay",
    "rollout_heat",
]

"""Looking inside: which positions attend to which."""

from cvattn.maps.capture import (
    AttentionMaps,
    attention_entropy,
    attention_modules,
    capture_attention,
)

__all__ = ["AttentionMaps", "attention_entropy", "attention_modules", "capture_attention"]

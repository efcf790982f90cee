"""cvattn: self-attention for computer vision, on one shared core."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cvattn.blocks import (
    AxialAttention2d,
    CrissCrossAttention2d,
    CrossAttention2d,
    NeighborhoodAttention2d,
    SelfAttention1d,
    SelfAttention2d,
    SelfAttention3d,
    WindowAttention2d,
    insert_attention,
    remove_attention,
    split_parameters,
)
from cvattn.checkpoint import load
from cvattn.core import Decoder, Encoder, MultiHeadAttention
from cvattn.maps import capture_attention
from cvattn.models import SAGANClassifier, Transformer, VisionTransformer

if TYPE_CHECKING:
    from cvattn.explorer.explore import explore
    from cvattn.harness.from_python import fit
    from cvattn.weights.replacement import replace_attention

__version__ = "0.1.0"

__all__ = [
    "AxialAttention2d",
    "CrissCrossAttention2d",
    "CrossAttention2d",
    "Decoder",
    "Encoder",
    "MultiHeadAttention",
    "NeighborhoodAttention2d",
    "SAGANClassifier",
    "SelfAttention1d",
    "SelfAttention2d",
    "SelfAttention3d",
    "Transformer",
    "VisionTransformer",
    "WindowAttention2d",
    "capture_attention",
    "explore",
    "fit",
    "insert_attention",
    "load",
    "remove_attention",
    "replace_attention",
    "split_parameters",
]

# What few need is imported when it is named: cvattn.weights.from_torch(module).
_LATER = frozenset({"cost", "inference", "testing", "weights"})


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return import_module(f"{__name__}.{name}")
    if name == "explore":
        return import_module(f"{__name__}.explorer").explore
    if name == "fit":
        return import_module(f"{__name__}.harness.from_python").fit
    if name == "replace_attention":
        return import_module(f"{__name__}.weights.replacement").replace_attention
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, *__all__})

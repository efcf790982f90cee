"""cvattn: self-attention for computer vision, on one shared core."""

from cvattn.blocks import SelfAttention2d, insert_attention, remove_attention, split_parameters
from cvattn.checkpoint import load
from cvattn.core import Decoder, Encoder, MultiHeadAttention
from cvattn.maps import capture_attention
from cvattn.models import SAGANClassifier, Transformer, VisionTransformer

__version__ = "0.1.0"

__all__ = [
    "Decoder",
    "Encoder",
    "MultiHeadAttention",
    "SAGANClassifier",
    "SelfAttention2d",
    "Transformer",
    "VisionTransformer",
    "capture_attention",
    "insert_attention",
    "load",
    "remove_attention",
    "split_parameters",
]

"""The shared attention and Transformer core. Imports torch and nothing else."""

from cvattn.core import masks, positions
from cvattn.core.alphabet import Alphabet
from cvattn.core.attention import attention, attention_weights, record_routes, use_route
from cvattn.core.cache import DecoderCache
from cvattn.core.decoder import Decoder, DecoderLayer
from cvattn.core.encoder import Encoder, EncoderLayer
from cvattn.core.feed_forward import FeedForward
from cvattn.core.multi_head import MultiHeadAttention
from cvattn.core.relative_bias import RelativeGridBias
from cvattn.core.residual import DropPath, LayerScale
from cvattn.core.rotary import Rotary, Rotation
from cvattn.core.rotary_grid import AxialRotary

__all__ = [
    "Alphabet",
    "AxialRotary",
    "Decoder",
    "DecoderCache",
    "DecoderLayer",
    "DropPath",
    "Encoder",
    "EncoderLayer",
    "FeedForward",
    "LayerScale",
    "MultiHeadAttention",
    "RelativeGridBias",
    "Rotary",
    "Rotation",
    "attention",
    "attention_weights",
    "masks",
    "positions",
    "record_routes",
    "use_route",
]

"""Attention for CNN feature maps (B, C, H, W)."""

from cvattn.blocks.cross_attention2d import CrossAttention2d
from cvattn.blocks.insertion import insert_attention, remove_attention, split_parameters
from cvattn.blocks.map_attention import MapAttention
from cvattn.blocks.self_attention2d import SelfAttention1d, SelfAttention2d, SelfAttention3d

__all__ = [
    "CrossAttention2d",
    "MapAttention",
    "SelfAttention1d",
    "SelfAttention2d",
    "SelfAttention3d",
    "insert_attention",
    "remove_attention",
    "split_parameters",
]

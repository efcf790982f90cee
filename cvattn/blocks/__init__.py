"""Attention for CNN feature maps (B, C, H, W)."""

from cvattn.blocks.axial_attention2d import (
    AxialAttention2d,
    AxisAttention2d,
    CrissCrossAttention2d,
)
from cvattn.blocks.cross_attention2d import CrossAttention2d
from cvattn.blocks.insertion import insert_attention, remove_attention, split_parameters
from cvattn.blocks.map_attention import MapAttention
from cvattn.blocks.neighborhood_attention2d import NeighborhoodAttention2d
from cvattn.blocks.self_attention2d import SelfAttention1d, SelfAttention2d, SelfAttention3d
from cvattn.blocks.window_attention2d import WindowAttention2d

__all__ = [
    "AxialAttention2d",
    "AxisAttention2d",
    "CrissCrossAttention2d",
    "CrossAttention2d",
    "MapAttention",
    "NeighborhoodAttention2d",
    "SelfAttention1d",
    "SelfAttention2d",
    "SelfAttention3d",
    "WindowAttention2d",
    "insert_attention",
    "remove_attention",
    "split_parameters",
]

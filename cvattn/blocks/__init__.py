"""Attention for CNN feature maps (B, C, H, W)."""

from cvattn.blocks.insertion import insert_attention, remove_attention, split_parameters
from cvattn.blocks.self_attention2d import SelfAttention2d

__all__ = ["SelfAttention2d", "insert_attention", "remove_attention", "split_parameters"]

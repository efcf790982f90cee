"""``nn.MultiheadAttention`` into our ``MultiHeadAttention`` and back."""

import torch
from torch import nn

from cvattn.core import MultiHeadAttention
from cvattn.weights.copying import copy_parameters, set_parameter

_NAMES = ("q_proj", "k_proj", "v_proj")


def attention_from(theirs: nn.MultiheadAttention) -> MultiHeadAttention:
    with torch.device("meta"):
        ours = MultiHeadAttention(
            theirs.embed_dim,
            theirs.num_heads,
            kdim=theirs.kdim,
            vdim=theirs.vdim,
            bias=theirs.in_proj_bias is not None,
            dropout=theirs.dropout,
            add_bias_kv=theirs.bias_k is not None,
            add_zero_attn=theirs.add_zero_attn,
        )
    for part, name in enumerate(_NAMES):
        layer = getattr(ours, name)
        if theirs.in_proj_weight is not None:
            set_parameter(layer, "weight", theirs.in_proj_weight, part=part)
        else:
            set_parameter(layer, "weight", getattr(theirs, f"{name}_weight"))
        if theirs.in_proj_bias is not None:
            set_parameter(layer, "bias", theirs.in_proj_bias, part=part)
    copy_parameters(ours.out_proj, theirs.out_proj)
    _copy_bias_kv(ours, theirs)
    return ours


def attention_to(ours: MultiHeadAttention) -> nn.MultiheadAttention:
    layers = [getattr(ours, name) for name in _NAMES]
    if ours.q_norm is not None:
        raise ValueError("this attention has qk_norm, which nn.MultiheadAttention has not")
    if ours.q_proj.bias is not None and ours.k_proj.bias is None:
        raise ValueError("this attention has qkv_bias='qv'; nn.MultiheadAttention has all or none")
    if (ours.q_proj.bias is None) != (ours.out_proj.bias is None):
        raise ValueError("qkv_bias differs from bias; nn.MultiheadAttention has one for both")
    with torch.device("meta"):
        theirs = nn.MultiheadAttention(
            ours.embed_dim,
            ours.num_heads,
            kdim=ours.k_proj.in_features,
            vdim=ours.v_proj.in_features,
            bias=ours.q_proj.bias is not None,
            dropout=ours.dropout,
            add_bias_kv=ours.bias_k is not None,
            add_zero_attn=ours.add_zero_attn,
            batch_first=True,
        )
    if theirs.in_proj_weight is not None:
        set_parameter(theirs, "in_proj_weight", *(layer.weight for layer in layers))
    else:
        for name, layer in zip(_NAMES, layers, strict=True):
            set_parameter(theirs, f"{name}_weight", layer.weight)
    if theirs.in_proj_bias is not None:
        set_parameter(theirs, "in_proj_bias", *(layer.bias for layer in layers))
    copy_parameters(theirs.out_proj, ours.out_proj)
    _copy_bias_kv(theirs, ours)
    return theirs


def _copy_bias_kv(target: nn.Module, source: nn.Module) -> None:
    for name in ("bias_k", "bias_v"):
        if getattr(source, name) is not None:
            set_parameter(target, name, getattr(source, name))

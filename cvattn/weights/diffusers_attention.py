"""diffusers' ``Attention``, the layer of its U-Nets and autoencoders, into ours."""

from typing import Any

import torch
from torch import nn

from cvattn.blocks import CrossAttention2d, SelfAttention2d
from cvattn.core import MultiHeadAttention
from cvattn.core.norms import Norm
from cvattn.weights.copying import copy_group_norm, copy_parameters, filled
from cvattn.weights.diffusers_checks import (
    attention_class,
    check_attention,
    reads_packed,
    scale_of,
)
from cvattn.weights.projections import projection_of, set_projection, split_projection


def from_diffusers(module: nn.Module) -> SelfAttention2d | CrossAttention2d | MultiHeadAttention:
    """Our attention with a copy of the weights of diffusers' ``Attention``, same outputs.

    ==================================================  =========================
    diffusers' ``Attention`` with                       ours
    ==================================================  =========================
    ``norm_num_groups``, ``residual_connection=True``   ``SelfAttention2d``
    the same and ``cross_attention_dim``                ``CrossAttention2d``
    neither: tokens, with ``cross_attention_dim`` too   ``MultiHeadAttention``
    ==================================================  =========================

    Biases, heads, epsilons, ``qk_norm`` of tokens ("layer_norm", "rms_norm") and fused projections
    follow, as do dtype, device, train/eval mode and ``requires_grad``. Scores and softmax are made
    in float32 at least, as ``upcast_attention`` and ``upcast_softmax`` ask for; so are the sums of
    ``rms_norm``, which theirs makes in float32 always. The layer's weights were converted by
    diffusers' own loader if they came from an older file. diffusers is loaded by this call.

    Raises:
        TypeError: not diffusers' ``Attention``; a subclass may compute something else.
        ValueError: an option that ours does not have (spatial and added norms, added keys,
            ``rescale_output_factor``, dropout behind the projection, ...) or a processor that may
            compute something else, by name; a layer that is not plain (an adapter, hooks), by name.
        ImportError: diffusers is not installed.
    """
    kind = attention_class("from_diffusers")
    if type(module) is not kind:
        raise TypeError(
            f"from_diffusers() got a {type(module).__qualname__}; expected diffusers' Attention"
        )
    make = _map_from if check_attention(module) == "map" else _tokens_from
    ours: Any = filled(make(module))
    return ours.train(module.training)


def _map_from(theirs: Any) -> SelfAttention2d | CrossAttention2d:
    norm, width = theirs.group_norm, theirs.to_q.out_features
    form: dict[str, Any] = {
        "groups": norm.num_groups,
        "num_heads": theirs.heads,
        "qk_channels": width,
        "value_channels": width,
        "scale": scale_of(theirs),
    }
    ours: SelfAttention2d | CrossAttention2d
    with torch.device("meta"):
        if theirs.is_cross_attention:
            context = theirs.to_k.in_features
            ours = CrossAttention2d.unet(theirs.to_q.in_features, context_channels=context, **form)
        else:
            ours = SelfAttention2d.unet(theirs.to_q.in_features, **form)
    copy_group_norm(ours.norm, norm)
    _copy_projections(ours, ("query", "key", "value", "proj"), theirs)
    return ours


def _tokens_from(theirs: Any) -> MultiHeadAttention:
    qk_norm, eps = _norms_of(theirs)
    with torch.device("meta"):
        ours = MultiHeadAttention(
            theirs.to_q.in_features,
            theirs.heads,
            kdim=theirs.to_k.in_features,
            vdim=theirs.to_v.in_features,
            qk_norm=qk_norm,
            norm_eps=eps,
        )
    _copy_projections(ours, ("q_proj", "k_proj", "v_proj", "out_proj"), theirs)
    if ours.q_norm is not None and ours.k_norm is not None:
        copy_parameters(ours.q_norm, theirs.norm_q)
        copy_parameters(ours.k_norm, theirs.norm_k)
    return ours


def _copy_projections(ours: nn.Module, names: tuple[str, ...], theirs: Any) -> None:
    q, k, v = (projection_of(layer) for layer in (theirs.to_q, theirs.to_k, theirs.to_v))
    if reads_packed(theirs) and theirs.is_cross_attention:
        k, v = split_projection(theirs.to_kv, 2)
    elif reads_packed(theirs):
        q, k, v = split_projection(theirs.to_qkv, 3)
    sources = (q, k, v, projection_of(theirs.to_out[0]))
    for name, source in zip(names, sources, strict=True):
        set_projection(getattr(ours, name), source)


def _norms_of(theirs: Any) -> tuple[Norm | None, float]:
    """Which norm is on q and k, and its epsilon."""
    from diffusers.models.normalization import RMSNorm as TheirRMSNorm

    first, second = theirs.norm_q, theirs.norm_k
    if first is None and second is None:
        return None, 1e-5
    kinds: dict[type, Norm] = {nn.LayerNorm: "layer", TheirRMSNorm: "rms"}
    width = theirs.to_q.out_features // theirs.heads
    fits = type(first) is type(second) and type(first) in kinds and first.eps == second.eps
    if not fits or any(
        {name: tuple(p.shape) for name, p in norm.named_parameters()}
        != dict.fromkeys(_NORM_PARTS[kinds[type(first)]], (width,))
        for norm in (first, second)
    ):
        raise ValueError(
            f"the attention has qk_norm={type(first).__name__}, {type(second).__name__}; expected "
            "layer_norm or rms_norm over one head, with weights"
        )
    return kinds[type(first)], first.eps


_NORM_PARTS: dict[Norm, tuple[str, ...]] = {"layer": ("weight", "bias"), "rms": ("weight",)}

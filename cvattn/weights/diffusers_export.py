"""Our attention as diffusers' ``Attention``."""

from typing import Any

import torch
from torch import nn

from cvattn.blocks import CrossAttention2d, SelfAttention2d
from cvattn.core import MultiHeadAttention
from cvattn.core.norms import RMSNorm
from cvattn.weights.copying import copy_group_norm, copy_parameters, filled
from cvattn.weights.diffusers_checks import attention_class
from cvattn.weights.plain import check_plain, refuse_options
from cvattn.weights.projections import Projection, projection_of, set_projection


def to_diffusers(module: nn.Module) -> nn.Module:
    """The inverse of :func:`from_diffusers`: an ``Attention`` of diffusers, on its own processor.

    Blocks for maps have to be of the form :meth:`SelfAttention2d.unet`: a norm, no gamma. The
    context of a map is given to theirs as tokens.

    Raises:
        TypeError: another type than the three.
        ValueError: what diffusers' layer has not, by name; a layer that is not plain, by name.
        ImportError: diffusers is not installed.
    """
    if type(module) not in (SelfAttention2d, CrossAttention2d, MultiHeadAttention):
        raise TypeError(
            f"to_diffusers() got a {type(module).__qualname__}; expected SelfAttention2d, "
            "CrossAttention2d or MultiHeadAttention"
        )
    kind = attention_class("to_diffusers")
    check_plain(module, ("cvattn", "torch.nn.modules"), _OUR_PLACES)
    make = _tokens_to if type(module) is MultiHeadAttention else _map_to
    return filled(make(module, kind)).train(module.training)


_OUR_PLACES: dict[str, tuple[type[nn.Module], ...]] = {
    r"query|proj": (nn.Conv2d, nn.Sequential),  # the other is looked at later
    r"key|value": (nn.Conv2d, nn.Linear),
    r"[qkv]_proj|out_proj": (nn.Linear,),
    r"[qk]_norm": (nn.LayerNorm, RMSNorm),
}
_HAS_NOT = "this attention has {}, which diffusers' Attention has not"


def _map_to(ours: Any, kind: Any) -> nn.Module:
    refuse_options(
        {
            "no norm": ours.norm is None,
            "gamma": ours.gamma is not None,
            "a batch norm behind the projection": isinstance(ours.proj, nn.Sequential),
            "kv_pool": getattr(ours, "kv_pool", 1) != 1,
            "a relative bias": getattr(ours, "relative_bias", None) is not None,
            "dropout of weights": ours.dropout > 0,
            f"scale={ours.scale}": ours.scale not in (None, 1.0),
            "other widths of q and v": _width(ours.query) != _width(ours.value),
        },
        _HAS_NOT,
    )
    is_cross = type(ours) is CrossAttention2d
    sources = [projection_of(layer) for layer in (ours.query, ours.key, ours.value, ours.proj)]
    with torch.device("meta"):
        theirs = kind(
            ours.in_channels,
            cross_attention_dim=ours.context_channels if is_cross else None,
            heads=ours.num_heads,
            dim_head=_width(ours.query) // ours.num_heads,
            scale_qk=ours.scale is None,
            norm_num_groups=ours.norm.num_groups,
            residual_connection=True,
            **_biases(sources),
        )
    copy_group_norm(theirs.group_norm, ours.norm)
    return _fill(theirs, sources)


def _tokens_to(ours: Any, kind: Any) -> nn.Module:
    norms = (ours.q_norm, ours.k_norm)
    refuse_options(
        {
            "bias_k": ours.bias_k is not None,
            "add_zero_attn": ours.add_zero_attn,
            "dropout of weights": ours.dropout > 0,
            f"kdim={ours.kdim} unlike vdim={ours.vdim}": ours.kdim != ours.vdim,
            "two epsilons": norms[0] is not None and norms[0].eps != norms[1].eps,
        },
        _HAS_NOT,
    )
    layers = (ours.q_proj, ours.k_proj, ours.v_proj, ours.out_proj)
    sources = [projection_of(layer) for layer in layers]
    named = {nn.LayerNorm: "layer_norm", RMSNorm: "rms_norm", type(None): None}
    with torch.device("meta"):
        theirs = kind(
            ours.embed_dim,
            cross_attention_dim=None if ours.kdim == ours.embed_dim else ours.kdim,
            heads=ours.num_heads,
            dim_head=ours.embed_dim // ours.num_heads,
            qk_norm=named[type(norms[0])],
            eps=1e-5 if norms[0] is None else norms[0].eps,
            **_biases(sources),
        )
    if norms[0] is not None:
        copy_parameters(theirs.norm_q, norms[0])
        copy_parameters(theirs.norm_k, norms[1])
    return _fill(theirs, sources)


def _width(layer: Any) -> int:
    return layer.weight.shape[0]


def _biases(sources: list[Projection]) -> dict[str, bool]:
    has = [source.bias is not None for source in sources]
    if len(set(has[:3])) > 1:
        raise ValueError(_HAS_NOT.format("a bias in some of query, key and value"))
    return {"bias": has[0], "out_bias": has[3]}


def _fill(theirs: Any, sources: list[Projection]) -> nn.Module:
    layers = (theirs.to_q, theirs.to_k, theirs.to_v, theirs.to_out[0])
    for layer, source in zip(layers, sources, strict=True):
        set_projection(layer, source)
    return theirs

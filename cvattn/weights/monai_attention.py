"""MONAI's self-attention, of its transformers and its U-Nets, into ours and back."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cvattn.blocks import SelfAttention1d, SelfAttention2d, SelfAttention3d
from cvattn.blocks.self_attention import SelfAttention
from cvattn.core import MultiHeadAttention
from cvattn.weights.copying import copy_group_norm, filled
from cvattn.weights.plain import check_plain, refuse_options
from cvattn.weights.projections import (
    Projection,
    join_projections,
    projection_of,
    set_projection,
    split_projection,
)

_BLOCKS: dict[int, type[SelfAttention]] = {
    1: SelfAttention1d,
    2: SelfAttention2d,
    3: SelfAttention3d,
}
_MAP_NAMES = ("query", "key", "value", "proj")
_TOKEN_NAMES = ("q_proj", "k_proj", "v_proj", "out_proj")


def from_monai(module: nn.Module) -> SelfAttention | MultiHeadAttention:
    """Our attention with a copy of the weights of MONAI's, same outputs.

    ==========================================  ================================================
    MONAI                                       ours
    ==========================================  ================================================
    ``SpatialAttentionBlock`` of 1, 2, 3 sizes  ``SelfAttention1d``, ``SelfAttention2d``, ``3d``
    ``SABlock``                                 ``MultiHeadAttention``
    ==========================================  ================================================

    One linear layer for q, k and v, or three; with and without their biases. Dtype, device,
    train/eval mode and ``requires_grad`` follow. MONAI is loaded by this call.

    What differs. Their ``attn_mask`` (B, N), where 0 hides a key, is ``attn_mask=mask.bool()[:,
    None, None]`` of ours; a query with nothing to attend to gives NaN there and the output bias
    here. Their ``dropout_rate`` drops weights and what the projection gives, and with
    ``use_flash_attention`` weights in eval mode too; ours drops weights in training alone, so a
    rate above 0 is refused.

    Raises:
        TypeError: another type; a subclass may compute something else.
        ValueError: an option that ours does not have, by name (causal, rel_pos_embedding,
            save_attn, include_fc=False, dropout_rate, heads that do not fill the input's width); a
            layer that is not plain (an adapter, hooks), by name.
        ImportError: MONAI is not installed.
    """
    tokens, spatial = monai_classes("from_monai")
    if type(module) not in (tokens, spatial):
        raise TypeError(
            f"from_monai() got a {type(module).__qualname__}; expected MONAI's SABlock or "
            "SpatialAttentionBlock"
        )
    is_map = type(module) is spatial
    theirs: Any = module
    inner = theirs.attn if is_map else theirs
    if type(inner) is not tokens:
        raise ValueError(f"attn is a {type(inner).__qualname__}; expected MONAI's SABlock")
    _check(inner)
    check_plain(module, _LIBRARIES, _PLACES, kept=("att_mat", "causal_mask"))
    ours: Any = filled(_map_from(theirs) if is_map else _tokens_from(theirs))
    return ours.train(module.training)


def monai_classes(caller: str) -> tuple[type[nn.Module], type[nn.Module]]:
    """``SABlock`` and ``SpatialAttentionBlock``; ImportError that says what to do without MONAI."""
    try:
        from monai.networks.blocks.selfattention import SABlock
        from monai.networks.blocks.spatialattention import SpatialAttentionBlock
    except ImportError as error:
        raise ImportError(f"{caller}() needs MONAI ({error}): pip install monai einops") from error
    return SABlock, SpatialAttentionBlock


_LIBRARIES = ("monai.networks.blocks", "torch.nn.modules", "einops.layers.torch")
_PLACES: dict[str, tuple[type[nn.Module], ...]] = {
    r"(attn\.)?(qkv|to_[qkv]|out_proj)": (nn.Linear, nn.Identity),
    r"(attn\.)?drop_(output|weights)": (nn.Dropout,),
    r"norm": (nn.GroupNorm,),
}


def _check(theirs: Any) -> None:
    """Options of an ``SABlock``."""
    rates = {theirs.dropout_rate, theirs.drop_output.p, theirs.drop_weights.p}
    dtype, own_dtype = theirs.attention_dtype, next(theirs.parameters()).dtype
    inner, width = theirs.inner_dim, theirs.hidden_input_size
    refuse_options(
        {
            "causal=True": theirs.causal,
            "rel_pos_embedding": theirs.rel_positional_embedding is not None,
            "include_fc=False": not theirs.include_fc,
            "save_attn=True": theirs.save_attn,
            f"dropout_rate={max(rates)}": max(rates) > 0,
            f"attention_dtype={dtype}": dtype not in (None, own_dtype),
            f"num_heads * dim_head={inner} unlike the input's {width}": inner != width,
        },
        "the block has {}, which cvattn's attention has not",
    )


def _projections(theirs: Any) -> list[Projection]:
    if theirs.use_combined_linear:
        qkv = split_projection(theirs.qkv, 3)
    else:
        qkv = [projection_of(layer) for layer in (theirs.to_q, theirs.to_k, theirs.to_v)]
    return [*qkv, projection_of(theirs.out_proj)]


def _tokens_from(theirs: Any) -> MultiHeadAttention:
    with torch.device("meta"):
        ours = MultiHeadAttention(theirs.inner_dim, theirs.num_heads)
    _fill(ours, _TOKEN_NAMES, _projections(theirs))
    return ours


def _map_from(theirs: Any) -> SelfAttention:
    if theirs.spatial_dims not in _BLOCKS:
        raise ValueError(f"spatial_dims={theirs.spatial_dims}; expected 1, 2 or 3")
    channels, heads = theirs.norm.num_channels, theirs.attn.num_heads
    with torch.device("meta"):
        ours = _BLOCKS[theirs.spatial_dims].unet(
            channels, head_dim=channels // heads, groups=theirs.norm.num_groups
        )
    copy_group_norm(ours.norm, theirs.norm)
    _fill(ours, _MAP_NAMES, _projections(theirs.attn))
    return ours


def _fill(module: nn.Module, names: tuple[str, ...], sources: list[Projection]) -> None:
    for name, source in zip(names, sources, strict=True):
        set_projection(module.get_submodule(name), source)


def to_monai(module: nn.Module) -> nn.Module:
    """The inverse of :func:`from_monai`, with MONAI's own defaults.

    A ``SpatialAttentionBlock`` has a linear layer each for q, k and v, an ``SABlock`` one for all,
    trainable if any of the three is. Blocks for maps have to be of the form
    :meth:`SelfAttention2d.unet`: a norm, no gamma.

    Raises:
        TypeError: another type than ``SelfAttention1d``, ``2d``, ``3d`` and ``MultiHeadAttention``.
        ValueError: what MONAI's block has not, by name; a layer that is not plain, by name.
        ImportError: MONAI is not installed.
    """
    if type(module) not in (*_BLOCKS.values(), MultiHeadAttention):
        raise TypeError(
            f"to_monai() got a {type(module).__qualname__}; expected SelfAttention1d, 2d or 3d, or "
            "MultiHeadAttention"
        )
    tokens, spatial = monai_classes("to_monai")
    check_plain(module, ("cvattn", "torch.nn.modules"), _OUR_PLACES)
    is_map = type(module) is not MultiHeadAttention
    names = _MAP_NAMES if is_map else _TOKEN_NAMES
    _check_ours(module, names)
    sources = [projection_of(module.get_submodule(name)) for name in names]
    theirs = _map_to(module, spatial, sources) if is_map else _tokens_to(module, tokens, sources)
    return filled(theirs).train(module.training)


_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_OUR_PLACES: dict[str, tuple[type[nn.Module], ...]] = {
    r"query|key|value|[qkv]_proj|out_proj": _LAYERS,
    r"proj": (*_LAYERS, nn.Sequential),  # which is refused by what it is
}


def _check_ours(ours: Any, names: tuple[str, ...]) -> None:
    layers = [getattr(ours, name) for name in names]
    is_map = isinstance(ours, SelfAttention)
    has_bias = [getattr(layer, "bias", None) is not None for layer in layers]
    widths = {layer.weight.shape[0] for layer in layers if hasattr(layer, "weight")}
    found: dict[str, bool] = {
        "no norm": is_map and ours.norm is None,
        "gamma": is_map and ours.gamma is not None,
        "a batch norm behind the projection": isinstance(layers[-1], nn.Sequential),
        "kv_pool": is_map and ours.kv_pool != 1,
        "a relative bias": is_map and ours.relative_bias is not None,
        f"scale={getattr(ours, 'scale', None)}": is_map and ours.scale is not None,
        "qk_norm": not is_map and ours.q_norm is not None,
        "bias_k": not is_map and ours.bias_k is not None,
        "add_zero_attn": not is_map and ours.add_zero_attn,
        "kdim or vdim": not is_map and {ours.kdim, ours.vdim} != {ours.embed_dim},
        "dropout of weights alone": ours.dropout > 0,
        "another width of q or v": is_map and len(widths) > 1,
        "no bias in the last projection": not has_bias[3],
        "a bias in some of query, key and value": len(set(has_bias[:3])) > 1,
        "no biases in query, key and value": is_map and not any(has_bias[:3]),
    }
    refuse_options(found, "this attention has {}, which MONAI's block has not")


def _map_to(ours: Any, kind: Callable[..., Any], sources: list[Projection]) -> nn.Module:
    with torch.device("meta"):
        theirs = kind(
            ours.dimensions,
            ours.in_channels,
            num_head_channels=ours.in_channels // ours.num_heads,
            norm_num_groups=ours.norm.num_groups,
        )
    copy_group_norm(theirs.norm, ours.norm)
    _fill(theirs.attn, ("to_q", "to_k", "to_v", "out_proj"), sources)
    return _with_values(theirs)


def _tokens_to(ours: Any, kind: Callable[..., Any], sources: list[Projection]) -> nn.Module:
    with torch.device("meta"):
        theirs = kind(ours.embed_dim, ours.num_heads, qkv_bias=sources[0].bias is not None)
    join_projections(theirs.qkv, sources[:3])
    set_projection(theirs.out_proj, sources[3])
    return _with_values(theirs)


def _with_values(theirs: nn.Module) -> nn.Module:
    """The empty tensors that the block keeps, off the meta device."""
    for part in theirs.modules():
        for name in ("att_mat", "causal_mask"):
            if isinstance(vars(part).get(name), torch.Tensor):
                setattr(part, name, torch.Tensor())
    return theirs

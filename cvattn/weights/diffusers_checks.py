"""What a diffusers ``Attention`` may be for ours to compute the same: all else is refused by name.

The module holds layers and options; its processor decides what is done with them. Two kinds are
known: those of torch's fused attention, which divide the scores by the root of a head's width and
apply ``qk_norm``, and those of plain products, which multiply by ``attn.scale`` and do not.
"""

from typing import Any, Literal

from torch import nn

from cvattn.weights.plain import check_plain, refuse_options

Form = Literal["map", "tokens"]


def attention_class(caller: str) -> type[nn.Module]:
    """diffusers' ``Attention``; ImportError that says what to do where there is none."""
    try:
        from diffusers.models.attention_processor import Attention
    except ImportError as error:
        raise ImportError(f"{caller}() needs diffusers ({error}): pip install diffusers") from error
    return Attention


def plain_processors() -> tuple[type, ...]:
    """Processors that multiply by ``attn.scale`` and leave out ``qk_norm``."""
    from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor

    return AttnProcessor, SlicedAttnProcessor


def fused_processors() -> tuple[type, ...]:
    """Processors that call torch's fused attention; the last one with fused projections."""
    from diffusers.models.attention_processor import AttnProcessor2_0, FusedAttnProcessor2_0

    return AttnProcessor2_0, FusedAttnProcessor2_0


def reads_packed(theirs: Any) -> bool:
    """Whether the module was fused, and computes with the packed projections."""
    return type(theirs.processor) is fused_processors()[1]


def check_attention(theirs: Any) -> Form:
    """Raise ValueError, with names, unless ours computes the same; else which form it has."""
    plain, fused = plain_processors(), fused_processors()
    processor = type(theirs.processor)
    if processor not in plain + fused:
        known = ", ".join(each.__name__ for each in plain + fused)
        raise ValueError(
            f"the attention's processor is a {processor.__name__}, which may compute something "
            f"else; expected one of {known}"
        )
    _check_options(theirs, applies_norms=processor in fused)
    _check_layers(theirs)
    form: Form = "map" if theirs.group_norm is not None else "tokens"
    if form == "map":
        refuse_options({"qk_norm": theirs.norm_q is not None}, f"{_HAS}blocks for maps have not")
    else:
        refuse_options(
            {
                f"heads * dim_head={theirs.to_q.out_features} unlike query_dim="
                f"{theirs.to_q.in_features}": theirs.to_q.out_features != theirs.to_q.in_features,
                "scale_qk=False": scale_of(theirs) is not None,
            },
            f"{_HAS}MultiHeadAttention has not",
        )
    return form


def scale_of(theirs: Any) -> float | None:
    """The factor on the scores; None = 1 / sqrt(width of a head)."""
    usual = (theirs.to_q.out_features // theirs.heads) ** -0.5
    plain = type(theirs.processor) in plain_processors()
    return theirs.scale if plain and abs(theirs.scale - usual) > 1e-9 * usual else None


_HAS = "the attention has {}, which cvattn's "


def _check_options(theirs: Any, *, applies_norms: bool) -> None:
    has_norm, is_residual = theirs.group_norm is not None, theirs.residual_connection
    refuse_options(
        {
            "spatial_norm_dim": theirs.spatial_norm is not None,
            "added_kv_proj_dim": theirs.added_kv_proj_dim is not None,
            "only_cross_attention=True": theirs.only_cross_attention,
            "cross_attention_norm": theirs.norm_cross is not None,
            "pre_only=True": theirs.to_out is None,
            "context_pre_only": theirs.context_pre_only is not None,
            "is_causal=True": theirs.is_causal,
            f"rescale_output_factor={theirs.rescale_output_factor}": (
                theirs.rescale_output_factor != 1.0
            ),
            "norm_num_groups without residual_connection": has_norm and not is_residual,
            "residual_connection without norm_num_groups": is_residual and not has_norm,
            "qk_norm with a processor that leaves it out": (
                theirs.norm_q is not None and not applies_norms
            ),
        },
        f"{_HAS}attention has not",
    )


def _check_layers(theirs: Any) -> None:
    """Types first, so that the widths can be read."""
    places: dict[str, tuple[type[nn.Module], ...]] = {
        r"to_[qkv]|to_qkv|to_kv|to_out\.0": (nn.Linear,),
        r"to_out": (nn.ModuleList,),
        r"to_out\.1": (nn.Dropout,),
        r"group_norm": (nn.GroupNorm,),
    }
    check_plain(theirs, ("diffusers.models", "torch.nn.modules"), places)
    q, k, v, out = theirs.to_q, theirs.to_k, theirs.to_v, theirs.to_out[0]
    biases = {layer.bias is None for layer in (q, k, v)}
    refuse_options(
        {
            "kv_heads": not q.out_features == k.out_features == v.out_features,
            f"out_dim={out.out_features}": out.out_features != q.in_features,
            "a bias in some of to_q, to_k, to_v": len(biases) > 1,
            f"dropout={theirs.to_out[1].p}, of what the projection gives": theirs.to_out[1].p > 0,
        },
        f"{_HAS}attention has not",
    )
    packed = "to_kv" if theirs.is_cross_attention else "to_qkv"
    if reads_packed(theirs) and not hasattr(theirs, packed):
        raise ValueError(
            f"the attention's processor is for fused projections, and there is no {packed}: call "
            "fuse_projections() or set another processor"
        )

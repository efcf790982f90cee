"""The blocks of timm's ``VisionTransformer`` and ``Eva`` into the layers of our encoder."""

from typing import Any

from torch import Tensor, nn

from cvattn.core.multi_head import QKVBias
from cvattn.weights.copying import copy_parameters, set_parameter
from cvattn.weights.timm_layers import copy_ffn, ffn_options, foreign_norms, norm_kind, present
from cvattn.weights.vit import one_for_all, refuse_if

# What timm calls our arguments, where it has another name for them.
_THEIR_NAMES = {
    "ffn_dim": "mlp_ratio",
    "activation": "act_layer",
    "layer_scale": "init_values",
    "ffn_norm": "the norm in the feed-forward network",
}
_BIASES: dict[tuple[bool, ...], QKVBias] = {
    (True, True, True): True,
    (False, False, False): False,
    (True, False, True): "qv",
}


def check_block(block: Any, index: int) -> None:
    """Refuse, by name, what our layers have not."""
    from timm.layers.attention import Attention, AttentionRope
    from timm.layers.layer_scale import LayerScale
    from timm.layers.mlp import GluMlp, Mlp, SwiGLU
    from timm.models.eva import EvaAttention, EvaBlock, EvaBlockPostNorm
    from timm.models.vision_transformer import Block

    where = f" in blocks.{index}"
    kinds: dict[type, tuple[type, ...]] = {
        Block: (Attention,),
        EvaBlock: (EvaAttention, AttentionRope),
    }
    refuse_if({"use_post_norm=True": type(block) is EvaBlockPostNorm}, where)
    refuse_if({f"block_fn={type(block).__name__}": type(block) not in kinds}, where)
    attn, mlp = block.attn, block.mlp
    scales = [getattr(block, name, None) for name in ("ls1", "ls2")]
    refuse_if(
        {
            f"attn_layer={type(attn).__name__}": type(attn) not in kinds[type(block)],
            f"mlp_layer={type(mlp).__name__}": type(mlp) not in (Mlp, GluMlp, SwiGLU),
            "LayerScale of another kind": any(
                present(scale) and type(scale) is not LayerScale for scale in scales
            ),
        },
        where,
    )
    inner = {"attn.q_norm": attn.q_norm, "attn.k_norm": attn.k_norm, "mlp.norm": mlp.norm}
    norms = {"norm1": block.norm1, "norm2": block.norm2}
    norms |= {name: norm for name, norm in inner.items() if present(norm)}
    linear = [layer for layer in mlp.children() if isinstance(layer, nn.Linear)]
    key_value_heads = getattr(attn, "num_kv_heads", attn.num_heads)
    width, biases = attn.proj.in_features, _biases(attn)
    beside = getattr(attn, "q_bias", None) is not None
    refuse_if(
        {
            **foreign_norms(norms),
            "qk_norm of one of the two (attn.q_norm), (attn.k_norm)": present(attn.q_norm)
            != present(attn.k_norm),
            "scale_attn_norm=True (scale_attn_inner)": present(attn.norm),
            "gated attention": present(getattr(attn, "gate", None)),
            f"qkv_bias of {biases}": biases not in _BIASES,
            "proj_bias=False": any(layer.bias is None for layer in (attn.proj, *linear)),
            "attn_head_dim": width != attn.proj.out_features,
            f"num_kv_heads={key_value_heads}": key_value_heads != attn.num_heads,
            "another scale of the scores": attn.scale != (width // attn.num_heads) ** -0.5,
            "qkv.bias besides q_bias": beside and attn.qkv.bias is not None,
            "a k_bias that is not 0": beside and bool(attn.k_bias.any()),
            "LayerScale (init_values) in one branch alone, attn_only_layer_scale=True": len(
                {scale is None for scale in _scales(block)}
            )
            == 2,
        },
        where,
    )


def encoder_options(blocks: list[Any]) -> dict[str, Any]:
    """Arguments of our encoder, read from the modules themselves; all blocks have to agree.

    Raises:
        ValueError: no blocks; what differs between them; an activation that ours has not.
    """
    if not blocks:
        raise ValueError("timm's model has no blocks (depth=0)")
    found = [_options(block) for block in blocks]
    return {
        "num_layers": len(blocks),
        "drop_path": _drop_path(blocks),
        **{
            name: one_for_all(_THEIR_NAMES.get(name, name), [options[name] for options in found])
            for name in found[0]
        },
    }


def _options(block: Any) -> dict[str, Any]:
    attn = block.attn
    return {
        "num_heads": attn.num_heads,
        "qkv_bias": _BIASES[_biases(attn)],
        "qk_norm": norm_kind(attn.q_norm) if present(attn.q_norm) else None,
        # The factors themselves are copied later.
        "layer_scale": None if _scales(block)[0] is None else 1.0,
        **ffn_options(block.mlp),
    }


def block_norms(block: Any) -> list[Any]:
    """The norms that have our encoder's kind, and its epsilon."""
    return [block.norm1, block.norm2, *([block.mlp.norm] if present(block.mlp.norm) else [])]


def head_norms(block: Any) -> list[Any]:
    """The norms of queries and keys, which have our encoder's epsilon."""
    return [norm for norm in (block.attn.q_norm, block.attn.k_norm) if present(norm)]


def dropouts(block: Any) -> list[float]:
    """All rates of a block, which ours has one of."""
    attn, mlp = block.attn, block.mlp
    return [part.p for part in (attn.attn_drop, attn.proj_drop, mlp.drop1, mlp.drop2)]


def _drop_path(blocks: list[Any]) -> float:
    """The last block's rate; ours rises to it linearly, as timm's does unless changed by hand."""
    rates = [
        [getattr(part, "drop_prob", 0.0) or 0.0 for part in (b.drop_path1, b.drop_path2)]
        for b in blocks
    ]
    last = rates[-1][0]
    for index, pair in enumerate(rates):
        wanted = last * index / max(1, len(blocks) - 1)
        if any(abs(rate - wanted) > 1e-6 for rate in pair):
            raise ValueError(
                f"drop_path of blocks.{index} is {pair}; ours rises linearly, here {wanted:.4g}"
            )
    return last


def _scales(block: Any) -> tuple[Tensor | None, Tensor | None]:
    """LayerScale's factors: in layers of their own, or parameters of the block (EVA)."""
    if hasattr(block, "gamma_1"):
        return block.gamma_1, block.gamma_2
    first, second = (getattr(part, "gamma", None) for part in (block.ls1, block.ls2))
    return first, second


def _projection(attn: Any, part: int, kind: str) -> tuple[Tensor | None, int | None]:
    """Where the weight or bias of query (0), key (1) or value (2) is, and which third of it."""
    name = "qkv"[part]
    if attn.qkv is None:
        return getattr(getattr(attn, f"{name}_proj"), kind), None
    packed = getattr(attn.qkv, kind)
    if packed is not None:
        return packed, part
    # EVA keeps the biases of query and value beside; the key's is a buffer of zeros.
    own = getattr(attn, f"{name}_bias", None)
    return own if isinstance(own, nn.Parameter) else None, None


def _biases(attn: Any) -> tuple[bool, ...]:
    """Whether query, key and value have one."""
    return tuple(_projection(attn, part, "bias")[0] is not None for part in range(3))


def copy_block(layer: Any, block: Any) -> None:
    """The weights of a block into a layer of our encoder."""
    copy_parameters(layer.norm1, block.norm1)
    copy_parameters(layer.norm2, block.norm2)
    ours, theirs = layer.self_attn, block.attn
    for index, projection in enumerate((ours.q_proj, ours.k_proj, ours.v_proj)):
        for kind in ("weight", "bias"):
            source, part = _projection(theirs, index, kind)
            if source is not None:
                set_parameter(projection, kind, source, part=part)
    copy_parameters(ours.out_proj, theirs.proj)
    if ours.q_norm is not None:
        copy_parameters(ours.q_norm, theirs.q_norm)
        copy_parameters(ours.k_norm, theirs.k_norm)
    copy_ffn(layer.ffn, block.mlp)
    for branch, scale in zip((layer.branch1, layer.branch2), _scales(block), strict=True):
        if scale is not None:
            set_parameter(branch[0], "gamma", scale)  # LayerScale stands first in a branch

"""Weights of timm's ``VisionTransformer`` into ours.

What timm can be told to do and ours cannot is refused by the name of timm's argument, never
dropped.
"""

from typing import Any

from torch import nn

from cvattn.core.feed_forward import Activation
from cvattn.models import VisionTransformer
from cvattn.weights.copying import copy_parameters, filled, set_parameter
from cvattn.weights.plain import check_plain
from cvattn.weights.vit import copy_positions, empty_vit, one_for_all, refuse_if


def from_timm(module: nn.Module) -> VisionTransformer:
    """Our ``VisionTransformer`` with a copy of the weights of timm's, same logits.

    Taken are ``global_pool="token"``, and ``"avg"`` with ``class_token=False, fc_norm=False``;
    learned positions; LayerScale (``init_values``); drop path; one dropout rate. Dtype, device,
    train/eval mode and ``requires_grad`` follow. timm is loaded by this call, not before.

    For images of another size call ``resample((H, W))`` on the result; its logits are those of
    timm's model after ``set_input_size((H, W))``.

    Raises:
        TypeError: not timm's ``VisionTransformer``; a subclass may compute something else.
        ValueError: an option that ours does not have, by name; a layer that is not plain (an
            adapter, a parametrization, hooks), by name.
    """
    from timm.models.vision_transformer import VisionTransformer as Source

    if type(module) is not Source:
        raise TypeError(
            f"from_timm() got a {type(module).__qualname__}; expected timm's VisionTransformer"
        )
    theirs: Any = module
    _check_parts(theirs)
    _check_model(theirs)
    for index, block in enumerate(theirs.blocks):
        _check_block(block, index)
    ours = empty_vit(theirs.num_classes, theirs.patch_embed.proj.weight, **_arguments(theirs))
    _copy_model(ours, theirs)
    filled(ours)
    return ours.train(module.training)


def _present(part: Any) -> bool:
    return part is not None and not isinstance(part, nn.Identity)


def _is_layer_norm(part: Any) -> bool:
    """torch's, or one of timm's that differ from it in how they are computed, not in what."""
    from timm.layers.norm import LayerNorm, LayerNormFp32

    return type(part) in (nn.LayerNorm, LayerNorm, LayerNormFp32)


def _check_parts(theirs: nn.Module) -> None:
    """Types where they have to be right for the options to be read; those name what differs."""
    from timm.layers.drop import DropPath

    check_plain(
        theirs,
        ("timm", "torch.nn.modules"),
        {
            r"patch_embed\.proj": (nn.Conv2d,),
            r"blocks": (nn.Sequential,),
            r"blocks\.\d+\.attn\.(qkv|proj)": (nn.Linear,),
            r"blocks\.\d+\.mlp\.fc[12]": (nn.Linear,),
            r"blocks\.\d+\.mlp\.drop[12]": (nn.Dropout,),
            r"blocks\.\d+\.drop_path[12]": (nn.Identity, DropPath),
            r"(.*\.)?(pos|attn|proj|head)_drop": (nn.Dropout,),
            r"head": (nn.Linear, nn.Identity),
        },
    )


def _check_model(theirs: Any) -> None:
    from timm.layers.patch_embed import PatchEmbed

    patch, pool = theirs.patch_embed, theirs.global_pool
    plain_patch = type(patch) is PatchEmbed
    refuse_if(
        {
            f"global_pool={pool!r}": pool not in ("token", "avg"),
            "global_pool='avg' with class_token=True": pool == "avg" and theirs.has_class_token,
            "fc_norm=True (the norm after pooling)": _present(theirs.fc_norm),
            "pool_include_prefix=True": theirs.pool_include_prefix,
            f"reg_tokens={theirs.num_reg_tokens}": theirs.num_reg_tokens > 0,
            "a class token besides the pool": pool == "token" and not theirs.has_class_token,
            "pos_embed='none'": theirs.pos_embed is None,
            "pre_norm=True": _present(theirs.norm_pre),
            "final_norm=False": not _present(theirs.norm) and not _present(theirs.fc_norm),
            f"norm_layer={type(theirs.norm).__name__}": _present(theirs.norm)
            and not _is_layer_norm(theirs.norm),
            "num_classes=0": not isinstance(theirs.head, nn.Linear),
            f"embed_layer={type(patch).__name__}": not plain_patch,
            "dynamic_img_size=True": theirs.dynamic_img_size,
            "dynamic_img_pad=True": plain_patch and patch.dynamic_img_pad,
            "embed_norm_layer": plain_patch and _present(patch.norm),
            f"patch_size={getattr(patch, 'patch_size', None)} (not square)": plain_patch
            and patch.patch_size[0] != patch.patch_size[1],
            "patch_drop_rate": _present(theirs.patch_drop),
            f"drop_rate={theirs.head_drop.p} (before the head)": theirs.head_drop.p > 0,
        }
    )


def _check_block(block: Any, index: int) -> None:
    from timm.layers.attention import Attention
    from timm.layers.layer_scale import LayerScale
    from timm.layers.mlp import Mlp
    from timm.models.vision_transformer import Block

    where = f" in blocks.{index}"
    refuse_if({f"block_fn={type(block).__name__}": type(block) is not Block}, where)
    attn, mlp = block.attn, block.mlp
    refuse_if(
        {
            f"attn_layer={type(attn).__name__}": type(attn) is not Attention,
            f"mlp_layer={type(mlp).__name__}": type(mlp) is not Mlp,
        },
        where,
    )
    norms = {type(n).__name__ for n in (block.norm1, block.norm2) if not _is_layer_norm(n)}
    refuse_if(
        {
            f"norm_layer={', '.join(sorted(norms))}": bool(norms),
            "qk_norm=True": _present(attn.q_norm) or _present(attn.k_norm),
            "scale_attn_norm=True": _present(attn.norm),
            "scale_mlp_norm=True": _present(mlp.norm),
            "gated attention": _present(getattr(attn, "gate", None)),
            "qkv_bias=False": attn.qkv.bias is None,
            "proj_bias=False": attn.proj.bias is None or mlp.fc1.bias is None,
            "attn_head_dim": attn.qkv.out_features != 3 * attn.qkv.in_features,
            "another scale of the scores": attn.scale != attn.head_dim**-0.5,
            "LayerScale of another kind": any(
                _present(scale) and type(scale) is not LayerScale
                for scale in (block.ls1, block.ls2)
            ),
        },
        where,
    )


def _arguments(theirs: Any) -> dict[str, Any]:
    """Arguments of ours, read from the modules themselves; what must agree is checked to agree."""
    blocks, patch = list(theirs.blocks), theirs.patch_embed
    if not blocks:
        raise ValueError("timm's model has no blocks (depth=0)")
    norms = [theirs.norm, *(n for b in blocks for n in (b.norm1, b.norm2))]
    dropouts = [theirs.pos_drop.p] + [
        p.p for b in blocks for p in (b.attn.attn_drop, b.attn.proj_drop, b.mlp.drop1, b.mlp.drop2)
    ]
    scaled = {_present(part) for b in blocks for part in (b.ls1, b.ls2)}
    return {
        "in_channels": patch.proj.in_channels,
        "image_size": tuple(patch.img_size),
        "patch_size": patch.patch_size[0],
        "embed_dim": theirs.embed_dim,
        "num_heads": one_for_all("num_heads", [b.attn.num_heads for b in blocks]),
        "ffn_dim": one_for_all("mlp_ratio", [b.mlp.fc1.out_features for b in blocks]),
        "num_layers": len(blocks),
        "pool": "cls" if theirs.global_pool == "token" else "mean",
        "dropout": one_for_all("the rates of pos_drop, attn_drop and proj_drop", dropouts),
        "drop_path": _drop_path(blocks),
        # The factors themselves are copied later.
        "layer_scale": 1.0 if one_for_all("init_values", list(scaled)) else None,
        "activation": one_for_all("act_layer", [_activation(b.mlp.act) for b in blocks]),
        "norm_eps": one_for_all("eps of the norms", [norm.eps for norm in norms]),
    }


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


def _activation(act: nn.Module) -> Activation:
    from timm.layers.activations import GELU

    if type(act) is nn.ReLU:
        return "relu"
    if type(act) is GELU or (type(act) is nn.GELU and act.approximate == "none"):
        return "gelu"
    raise ValueError(f"timm's model uses act_layer={act}; expected GELU (exact) or ReLU")


def _copy_model(ours: Any, theirs: Any) -> None:
    copy_parameters(ours.stem, theirs.patch_embed.proj)
    copy_positions(ours, theirs.cls_token, theirs.pos_embed)
    for layer, block in zip(ours.encoder.layers, theirs.blocks, strict=True):
        copy_parameters(layer.norm1, block.norm1)
        copy_parameters(layer.norm2, block.norm2)
        for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
            for kind in ("weight", "bias"):
                source = getattr(block.attn.qkv, kind)
                set_parameter(getattr(layer.self_attn, name), kind, source, part=part)
        copy_parameters(layer.self_attn.out_proj, block.attn.proj)
        copy_parameters(layer.ffn.fc1, block.mlp.fc1)
        copy_parameters(layer.ffn.fc2, block.mlp.fc2)
        for branch, scale in ((layer.branch1, block.ls1), (layer.branch2, block.ls2)):
            if _present(scale):
                copy_parameters(branch[0], scale)  # LayerScale stands first in a branch
    copy_parameters(ours.encoder.norm, theirs.norm)
    copy_parameters(ours.head, theirs.head)

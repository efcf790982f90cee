"""Weights of timm's ``VisionTransformer`` and ``Eva`` into ours.

What timm can be told to do and ours cannot is refused by the name of timm's argument, never
dropped.
"""

from typing import Any

from torch import nn

from cvattn.models import VisionTransformer
from cvattn.weights.copying import copy_parameters, filled
from cvattn.weights.plain import check_plain
from cvattn.weights.timm_blocks import (
    block_norms,
    check_block,
    copy_block,
    dropouts,
    encoder_options,
    head_norms,
)
from cvattn.weights.timm_layers import foreign_norms, norm_kind, present
from cvattn.weights.timm_pool import PLACES, check_pool, copy_pool
from cvattn.weights.timm_rotary import rotary_options
from cvattn.weights.vit import copy_positions, empty_vit, one_for_all, refuse_if

_POOLS = {"token": "cls", "avg": "mean", "map": "attention"}


def from_timm(module: nn.Module) -> VisionTransformer:
    """Our ``VisionTransformer`` with a copy of the weights of timm's, same outputs.

    Taken are the networks that timm makes of its classes ``VisionTransformer`` and ``Eva``: ViT and
    AugReg, DeiT and DeiT-3 (not distilled), DINOv2 with and without registers, CLIP's and SigLIP's
    image towers, EVA-02, DINOv3. That is ``global_pool`` "token", "avg" (of the grid's tokens) or
    "map"; class token and registers, with positions of their own or without; learned, rotary or no
    positions; LayerNorm or RMSNorm, before the blocks too, or the last one after pooling;
    ``qk_norm``; any biases of query, key and value; GELU (exact or by tanh), QuickGELU, ReLU,
    SwiGLU, a norm in it; LayerScale; drop path; one dropout rate; ``num_classes=0``. Dtype, device,
    train/eval mode and ``requires_grad`` follow. timm is loaded by this call, not before.

    For images of another size call ``resample((H, W))`` on the result; its outputs are those of
    timm's model after ``set_input_size((H, W))``, or of one with ``dynamic_img_size=True``. timm
    computes rotary angles in float32 (and keeps them in half precision in such models), ours in
    float64: outputs agree to that.

    Raises:
        TypeError: neither of timm's two classes; a subclass may compute something else.
        ValueError: an option that ours does not have, by name; a layer that is not plain (an
            adapter, a parametrization, hooks), by name.
    """
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer as Source

    if type(module) not in (Source, Eva):
        raise TypeError(
            f"from_timm() got a {type(module).__qualname__}; expected timm's VisionTransformer or "
            "Eva"
        )
    theirs: Any = module
    _check_parts(theirs, nn.ModuleList if type(module) is Eva else nn.Sequential)
    _check_model(theirs, is_eva=type(module) is Eva)
    for index, block in enumerate(theirs.blocks):
        check_block(block, index)
    encoder = encoder_options(list(theirs.blocks))
    if theirs.attn_pool is not None:
        check_pool(theirs.attn_pool, encoder)
    classes = theirs.head.out_features if isinstance(theirs.head, nn.Linear) else 0
    ours = empty_vit(classes, theirs.patch_embed.proj.weight, **encoder, **_others(theirs))
    _copy_model(ours, theirs)
    filled(ours)
    return ours.train(module.training)


def _check_parts(theirs: nn.Module, blocks: type[nn.Module]) -> None:
    """Types where they have to be right for the options to be read; those name what differs."""
    from timm.layers.drop import DropPath

    check_plain(
        theirs,
        ("timm", "torch.nn.modules"),
        {
            r"patch_embed\.proj": (nn.Conv2d,),
            r"blocks": (blocks,),
            r"blocks\.\d+\.attn\.(qkv|[qkv]_proj|proj)": (nn.Linear,),
            r"blocks\.\d+\.mlp\.(fc[12]|fc1_[gx])": (nn.Linear,),
            r"blocks\.\d+\.mlp\.drop[12]": (nn.Dropout,),
            r"blocks\.\d+\.drop_path[12]": (nn.Identity, DropPath),
            **PLACES,
            r"(.*\.)?(pos|attn|proj|head)_drop": (nn.Dropout,),
            r"head": (nn.Linear, nn.Identity),
        },
    )


def _check_model(theirs: Any, *, is_eva: bool) -> None:
    from timm.layers.patch_embed import PatchEmbed

    patch, pool = theirs.patch_embed, theirs.global_pool
    before, after = present(theirs.norm), present(theirs.fc_norm)
    plain_patch = type(patch) is PatchEmbed
    prefix = theirs.cls_token is not None or theirs.reg_token is not None
    norms = {name: getattr(theirs, name) for name in ("norm_pre", "norm", "fc_norm")}
    refuse_if(
        {
            f"global_pool={pool!r}": pool not in _POOLS,
            f"attn_pool with global_pool={pool!r}": pool in _POOLS
            and (pool == "map") != (theirs.attn_pool is not None),
            "pool_include_prefix=True": getattr(theirs, "pool_include_prefix", False),
            # Eva's attends to all tokens, VisionTransformer's to those of the grid, as ours.
            "global_pool='map' with class_token or num_reg_tokens": is_eva
            and pool == "map"
            and prefix,
            "global_pool='token' without a class token": pool == "token"
            and theirs.cls_token is None,
            # Some of timm's versions then leave out these tokens, others do not.
            "pos_embed='none' with class_token or reg_tokens": not is_eva
            and theirs.pos_embed is None
            and prefix,
            "pos_embed='none' with dropout": not is_eva
            and theirs.pos_embed is None
            and theirs.pos_drop.p > 0,
            "fc_norm=True besides the norm before pooling": before and after,
            **foreign_norms({name: norm for name, norm in norms.items() if present(norm)}),
            f"embed_layer={type(patch).__name__}": not plain_patch,
            "dynamic_img_pad=True": plain_patch and patch.dynamic_img_pad,
            "embed_norm_layer": plain_patch and present(patch.norm),
            f"patch_size={getattr(patch, 'patch_size', None)} (not square)": plain_patch
            and patch.patch_size[0] != patch.patch_size[1],
            "patch_drop_rate": present(theirs.patch_drop),
            f"drop_rate={theirs.head_drop.p} (before the head)": theirs.head_drop.p > 0,
        }
    )


def _others(theirs: Any) -> dict[str, Any]:
    """Arguments of ours besides the encoder's, read from the modules, which have to agree."""
    blocks, patch = list(theirs.blocks), theirs.patch_embed
    parts = (theirs.norm_pre, theirs.norm, theirs.fc_norm, getattr(theirs.attn_pool, "norm", None))
    norms = [part for part in parts if present(part)]
    norms += [norm for block in blocks for norm in block_norms(block)]
    eps = [norm.eps for norm in (*norms, *(n for block in blocks for n in head_norms(block)))]
    rates = [theirs.pos_drop.p, *(rate for block in blocks for rate in dropouts(block))]
    return {
        "in_channels": patch.proj.in_channels,
        "image_size": tuple(patch.img_size),
        "patch_size": patch.patch_size[0],
        "stem_bias": patch.proj.bias is not None,
        "embed_dim": theirs.embed_dim,
        "pool": _POOLS[theirs.global_pool],
        "class_token": theirs.cls_token is not None,
        "num_registers": 0 if theirs.reg_token is None else theirs.reg_token.shape[1],
        "positions": "none" if theirs.pos_embed is None else "learned",
        "rotary": rotary_options(theirs),
        "pre_norm": present(theirs.norm_pre),
        "fc_norm": present(theirs.fc_norm),
        "final_norm": present(theirs.norm) or present(theirs.fc_norm),
        "norm": one_for_all("norm_layer", [norm_kind(norm) for norm in norms]),
        "norm_eps": one_for_all("eps of the norms", eps),
        "dropout": one_for_all("the rates of pos_drop, attn_drop and proj_drop", rates),
        "gradient_checkpointing": bool(theirs.grad_checkpointing),
    }


def _copy_model(ours: Any, theirs: Any) -> None:
    copy_parameters(ours.stem, theirs.patch_embed.proj)
    copy_positions(ours, theirs.cls_token, theirs.pos_embed, theirs.reg_token)
    for layer, block in zip(ours.encoder.layers, theirs.blocks, strict=True):
        copy_block(layer, block)
    pairs = (
        (ours.pre_norm, theirs.norm_pre),
        (ours.encoder.norm, theirs.norm),
        (ours.fc_norm, theirs.fc_norm),
        (ours.head, theirs.head),
    )
    for layer, source in pairs:
        if present(source):
            copy_parameters(layer, source)
    if ours.attention_pool is not None:
        copy_pool(ours.attention_pool, theirs.attn_pool)

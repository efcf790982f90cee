"""Every argument of timm's VisionTransformer and Eva: taken exactly, or refused by its name."""

import inspect
from functools import partial

import pytest
import timm
import torch
from oracles import fill
from timm.layers import (
    GELUTanh,
    GluMlp,
    LayerNorm,
    PatchEmbed,
    QuickGELU,
    RmsNorm,
    RotaryEmbeddingCat,
    SimpleNorm,
    SwiGLU,
    SwiGLUPacked,
)
from timm.layers.mlp import GatedMlp
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock
from timm.models.vision_transformer import VisionTransformer as ViT
from timm_networks import assert_same, turned_exactly
from torch import nn

from cvattn.core import DropPath, MultiHeadAttention
from cvattn.weights import from_timm

SIZES = {"img_size": (8, 12), "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}
SIZES |= {"num_classes": 5, "mlp_ratio": 2.5}
# Taken: the same outputs and gradients. No word of these is in an error.
EXACT = ""
GATED_LAST = partial(GluMlp, act_layer=nn.SiLU)
MEAN = {"global_pool": "avg"}
MAP = {"global_pool": "map", "class_token": False}

PRR = ("prr",) if hasattr(timm.layers, "AttentionPoolPrr") else ()

# {argument: [(its value, other options, EXACT or what the error says)]}
BOTH = {
    "img_size": [((12, 8), {}, EXACT), ((8, 13), {}, "not divisible by patch_size=4")],
    "patch_size": [(2, {}, EXACT), ((4, 6), {}, r"patch_size=\(4, 6\) \(not square\)")],
    "in_chans": [(1, {}, EXACT)],
    "num_classes": [(0, {}, EXACT), (7, {}, EXACT)],
    "embed_dim": [(36, {}, EXACT)],
    "depth": [(1, {}, EXACT), (3, {}, EXACT), (0, {}, "depth=0")],
    "num_heads": [(2, {}, EXACT)],
    "mlp_ratio": [(1.5, {}, EXACT)],
    "qkv_bias": [(False, {}, EXACT)],
    "qk_norm": [(True, {}, EXACT)],
    "init_values": [(0.3, {}, EXACT)],
    "no_embed_class": [(True, {}, EXACT)],
    "dynamic_img_size": [(True, {}, EXACT)],
    "dynamic_img_pad": [(True, {}, "dynamic_img_pad=True")],
    "drop_rate": [(0.5, {}, r"drop_rate=0.5 \(before the head\)")],
    "pos_drop_rate": [
        (0.1, {"attn_drop_rate": 0.1, "proj_drop_rate": 0.1}, EXACT),
        (0.1, {}, r"the rates of pos_drop, attn_drop and proj_drop"),
    ],
    "attn_drop_rate": [(0.1, {}, r"pos_drop, attn_drop and proj_drop.*\[0.0, 0.1\]")],
    "proj_drop_rate": [(0.1, {}, r"pos_drop, attn_drop and proj_drop.*\[0.0, 0.1\]")],
    "patch_drop_rate": [(0.5, {}, "patch_drop_rate")],
    "drop_path_rate": [(0.2, {}, EXACT)],
    "device": [("cpu", {}, EXACT)],
    "dtype": [(torch.float64, {}, EXACT)],
}
VIT = BOTH | {
    "global_pool": [
        ("avg", {}, EXACT),
        ("map", {}, EXACT),
        ("map", {"class_token": False, "reg_tokens": 2}, EXACT),
        ("map", {"mlp_layer": SwiGLU, "act_layer": nn.SiLU}, "SiLU"),
        ("map", {"mlp_layer": SwiGLU, "act_layer": nn.SiLU, "mlp_ratio": 2}, "SiLU"),
        *[(pool, {}, f"global_pool='{pool}'") for pool in ("", "avgmax", "max", *PRR)],
    ],
    "qkv_bias": [(False, {}, EXACT), (False, MAP, EXACT)],
    "qk_norm": [
        (True, {}, EXACT),
        (True, {"norm_layer": RmsNorm}, EXACT),
        (True, MAP, EXACT),
    ],
    "scale_attn_norm": [(True, {}, r"scale_attn_norm=True \(scale_attn_inner\) in blocks\.0")],
    "scale_mlp_norm": [
        (True, {}, EXACT),
        (True, {"mlp_layer": SwiGLU, "act_layer": nn.SiLU}, EXACT),
        (True, {"norm_layer": RmsNorm}, EXACT),
    ],
    "proj_bias": [(False, {}, r"proj_bias=False in blocks\.0")],
    "class_token": [(False, MEAN, EXACT), (False, {**MEAN, "fc_norm": False}, EXACT)],
    "pos_embed": [
        ("none", {**MEAN, "class_token": False}, EXACT),
        ("none", {}, "pos_embed='none' with class_token"),
        ("none", {**MEAN, "class_token": False, "reg_tokens": 1}, "pos_embed='none' with class_t"),
        (
            "none",
            {**MEAN, "class_token": False, "pos_drop_rate": 0.1, "attn_drop_rate": 0.1}
            | {"proj_drop_rate": 0.1},
            "pos_embed='none' with dropout",
        ),
    ],
    "reg_tokens": [
        (3, {}, EXACT),
        (3, {"no_embed_class": True}, EXACT),
        (3, MEAN, EXACT),
        (3, {**MEAN, "class_token": False}, EXACT),
        (1, {**MEAN, "class_token": False, "no_embed_class": True}, EXACT),
    ],
    "pre_norm": [(True, {}, EXACT)],
    "final_norm": [(False, {}, EXACT), (False, MEAN, EXACT)],
    "fc_norm": [(True, {}, EXACT), (True, MEAN, EXACT), (False, MEAN, EXACT), (True, MAP, EXACT)],
    "pool_include_prefix": [(True, MEAN, "pool_include_prefix=True")],
    "weight_init": [("jax", {}, EXACT)],
    "fix_init": [(True, {}, EXACT)],
    "embed_layer": [(type("Own", (PatchEmbed,), {}), {}, "embed_layer=Own|patch_embed is a .*Own")],
    "embed_norm_layer": [("layernorm", {}, "embed_norm_layer")],
    "norm_layer": [
        (RmsNorm, {}, EXACT),
        (RmsNorm, {"global_pool": "map"}, EXACT),
        (nn.LayerNorm, {}, EXACT),
        (partial(nn.RMSNorm, eps=1e-5), {}, EXACT),
        (partial(LayerNorm, eps=1e-3), {"qk_norm": True, "pre_norm": True}, EXACT),
        (nn.RMSNorm, {}, r"norm_layer=RMSNorm \(norm\)"),  # its eps depends on the dtype
        (partial(LayerNorm, affine=False), {}, r"norm_layer=LayerNorm \(norm\)"),
        ("simplenorm", {}, r"norm_layer=SimpleNorm \(norm\)"),
    ],
    "act_layer": [
        *[(act, {}, EXACT) for act in (nn.ReLU, GELUTanh, QuickGELU, "gelu", "gelu_tanh")],
        (partial(nn.GELU, approximate="tanh"), {"global_pool": "map"}, EXACT),
        ("quick_gelu", {}, EXACT),
        ("silu", {}, "act_layer=SiLU.*expected GELU"),
    ],
    "block_fn": [
        (block, {}, rf"block_fn={block.__name__} in blocks\.0")
        for block in (ParallelScalingBlock, ResPostBlock)
    ],
    "mlp_layer": [
        (SwiGLUPacked, {"act_layer": nn.SiLU, "mlp_ratio": 2}, EXACT),
        (GATED_LAST, {"act_layer": nn.SiLU, "mlp_ratio": 2}, EXACT),
        (SwiGLU, {"act_layer": nn.SiLU}, EXACT),
        (SwiGLUPacked, {"mlp_ratio": 2}, "GluMlp uses act_layer=GELU.*expected SiLU"),
        (GatedMlp, {}, r"mlp_layer=GatedMlp in blocks\.0"),
    ],
    "attn_layer": [("diff", {}, r"attn_layer=DiffAttention in blocks\.0")],
}
ROTARY = {"use_rot_pos_emb": True}
DINOV3 = {**ROTARY, "rope_type": "dinov3", "rope_temperature": 100.0, "rope_rotate_half": True}
# Older versions make tables in one order of pairs, whatever the blocks are told.
EITHER = (
    EXACT if "rotate_half" in inspect.signature(RotaryEmbeddingCat).parameters else "the table of"
)
EVA = BOTH | {
    "global_pool": [
        ("token", {}, EXACT),
        ("map", {"class_token": False}, EXACT),
        ("map", {"class_token": False, "swiglu_mlp": True}, "activation 'gelu'.*have 'swiglu'"),
        ("map", {}, "global_pool='map' with class_token or num_reg_tokens"),
        ("map", {"class_token": False, "num_reg_tokens": 1}, "global_pool='map' with class_token"),
        *[(pool, {}, f"global_pool='{pool}'") for pool in ("", "avgmax", "max")],
    ],
    "num_kv_heads": [
        (1, {"attn_type": "rope", "qkv_fused": False}, r"num_kv_heads=1 in blocks\.0"),
        (3, {"attn_type": "rope", "qkv_fused": False}, EXACT),
    ],
    "qkv_fused": [(False, {}, EXACT), (False, {"qkv_bias": False}, EXACT), (False, ROTARY, EXACT)],
    "swiglu_mlp": [(True, {}, EXACT), (True, {"scale_mlp": True}, EXACT)],
    "swiglu_align_to": [(7, {"swiglu_mlp": True}, EXACT)],
    "scale_mlp": [(True, {}, EXACT)],
    "scale_attn_inner": [(True, {}, r"scale_attn_norm=True \(scale_attn_inner\) in blocks\.0")],
    "attn_type": [
        ("rope", {}, EXACT),
        ("rope", {"qkv_fused": False, **DINOV3}, EXACT),
        ("rope", {"qkv_bias": False}, EXACT),
    ],
    "norm_layer": [
        (RmsNorm, {}, EXACT),
        (RmsNorm, {"qk_norm": True, "scale_mlp": True, "swiglu_mlp": True}, EXACT),
        (partial(LayerNorm, eps=1e-3), {}, EXACT),
        (SimpleNorm, {}, r"norm_layer=SimpleNorm \(fc_norm\)"),
    ],
    "attn_only_layer_scale": [
        (True, {"init_values": 0.3}, r"attn_only_layer_scale=True in blocks")
    ],
    "class_token": [(False, {}, EXACT), (False, {"num_reg_tokens": 1}, EXACT)],
    "num_reg_tokens": [(3, {}, EXACT), (3, {"no_embed_class": True, **ROTARY}, EXACT)],
    "no_embed_class": [(True, {}, EXACT)],
    "use_abs_pos_emb": [
        (False, {}, EXACT),
        (False, {**ROTARY, "num_reg_tokens": 2}, EXACT),
        (False, {"pos_drop_rate": 0.1, "attn_drop_rate": 0.1, "proj_drop_rate": 0.1}, EXACT),
    ],
    "use_rot_pos_emb": [
        (True, {}, EXACT),
        (True, {"dynamic_img_size": True, "num_reg_tokens": 2}, EXACT),
        (True, {"class_token": False}, EXACT),
        (True, {"qk_norm": True}, EXACT),
    ],
    "rope_type": [
        ("dinov3", {**ROTARY, "rope_rotate_half": True}, EXACT),
        ("dinov3", DINOV3 | {"dynamic_img_size": True}, EXACT),
        ("mixed", ROTARY, "rope_type of RotaryEmbeddingMixed"),
        (
            "mrope",
            {**ROTARY, "rope_mrope_section": (0, 2, 2)},
            "rope_type of RotaryEmbeddingMRope",
        ),
    ],
    "rope_grid_offset": [(0.5, ROTARY, EXACT), (0.25, DINOV3, EXACT)],
    "rope_grid_indexing": [
        ("xy", ROTARY, "rope_grid_indexing='xy'"),
        ("xy", DINOV3, "rope_grid_indexing='xy'"),
    ],
    "rope_temperature": [(100.0, ROTARY, EXACT), (30.0, DINOV3, EXACT)],
    "rope_rotate_half": [
        (True, DINOV3, EXACT),
        (True, ROTARY, EITHER),
        (False, DINOV3, EITHER),
    ],
    "rope_shift_coords": [
        (0.1, ROTARY, r"rope_shift_coords \(random in training\)"),
        (0.1, {**DINOV3, "rope_jitter_coords": 2.0}, "rope_shift_coords, rope_jitter_coords"),
    ],
    "rope_jitter_coords": [(2.0, DINOV3, r"rope_jitter_coords \(random in training\)")],
    "rope_rescale_coords": [(2.0, DINOV3, r"rope_rescale_coords \(random in training\)")],
    "rope_mrope_section": [((0, 2, 2), {**ROTARY, "rope_type": "mrope"}, "RotaryEmbeddingMRope")],
    "use_post_norm": [(True, {}, r"use_post_norm=True in blocks\.0")],
    "use_pre_transformer_norm": [(True, {}, EXACT)],
    "use_post_transformer_norm": [
        (True, {"use_fc_norm": False}, EXACT),
        (False, {"use_fc_norm": False}, EXACT),
        (True, {}, "fc_norm=True besides the norm before pooling"),
    ],
    "use_fc_norm": [(False, {}, EXACT), (True, {"global_pool": "token"}, EXACT)],
    "attn_pool_num_heads": [
        (2, MAP, "attn_pool_num_heads=2"),
        (3, MAP, EXACT),
    ],
    "attn_pool_mlp_ratio": [
        (
            3.0,
            MAP,
            "attn_pool_mlp_ratio for a width of 72",
        ),
    ],
    "ref_feat_shape": [((5, 7), ROTARY, EXACT), (4, {**ROTARY, "dynamic_img_size": True}, EXACT)],
    "head_init_scale": [(0.5, {}, EXACT)],
}
TABLES = {ViT: VIT, Eva: EVA}
CASES = [
    pytest.param(kind, others | {name: value}, says, id=f"{kind.__name__}-{name}-{index}")
    for kind, table in TABLES.items()
    for name, cases in table.items()
    for index, (value, others, says) in enumerate(cases)
    if {name, *others} <= inspect.signature(kind).parameters.keys()  # older ones lack some
]


@pytest.mark.parametrize("kind", TABLES)
def test_no_argument_is_left_out(kind):
    """A new one has to be looked at: what does from_timm make of it?"""
    known = TABLES[kind].keys()
    assert set(inspect.signature(kind).parameters) <= known


@pytest.mark.sweep(64)
@pytest.mark.parametrize(("kind", "options", "says"), CASES)
def test_taken_exactly_or_refused_by_name(kind, options, says):
    theirs = fill(kind(**(SIZES | options))).eval()
    if says:
        with pytest.raises(ValueError, match=says):
            from_timm(theirs)
        return
    assert_same(turned_exactly(theirs))
    assert _rates(from_timm(theirs)) == (
        {options.get("attn_drop_rate", 0.0)},  # the one of tokens, weights and projections
        pytest.approx(options.get("drop_path_rate", 0.0)),
    )


def _rates(ours):
    dropouts = {m.dropout for m in ours.encoder.modules() if isinstance(m, MultiHeadAttention)}
    dropouts |= {m.p for m in ours.modules() if isinstance(m, nn.Dropout)}
    if ours.attention_pool is not None:
        dropouts.add(ours.attention_pool.attn.dropout)
    paths = [m.probability for m in ours.modules() if isinstance(m, DropPath)]
    return dropouts, max(paths, default=0.0)


def test_classes_that_are_neither():
    for name in ("deit_tiny_distilled_patch16_224", "beit_base_patch16_224"):
        theirs = timm.create_model(name, embed_dim=24, depth=1, num_heads=3, img_size=32)
        with pytest.raises(TypeError, match="expected timm's VisionTransformer or Eva"):
            from_timm(theirs)

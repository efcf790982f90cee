"""Towers that timm has by name, as ours: outputs, gradients, and what else is done with them."""

import copy

import pytest
import torch
from oracles import assert_near, fill
from timm_networks import SIZES, assert_same, images_for, network

import cvattn
from cvattn import capture_attention
from cvattn.cost import count_macs, count_parameters
from cvattn.maps import attention_heat, heat_on_image
from cvattn.maps.grids import Layout
from cvattn.models import VisionTransformer
from cvattn.weights import from_timm

DINOV3 = "vit_small_patch16_dinov3"
TOWERS = {
    "vit_small_patch14_dinov2": {},
    "vit_small_patch14_reg4_dinov2": {},
    "vit_giant_patch14_reg4_dinov2": {},
    DINOV3: {},
    f"{DINOV3} token": {"global_pool": "token", "num_classes": 0},
    f"{DINOV3}_qkvb": {},
    "vit_small_plus_patch16_dinov3": {},
    "eva02_tiny_patch14_224": {},
    "eva02_base_patch14_224": {},
    "eva02_large_patch14_clip_224 unscaled": {"scale_attn_inner": False},
    "eva_giant_patch14_224": {},
    "vit_base_patch16_rope_reg1_gap_256": {},
    "vit_base_patch32_clip_224": {},
    "vit_base_patch32_clip_quickgelu_224": {},
    "vit_base_patch16_siglip_224": {},
    "vit_so400m_patch14_siglip_224": {"num_classes": 0},
    "vit_base_patch16_siglip_gap_224": {},
    "deit3_small_patch16_224": {},
    "vit_medium_patch16_gap_256": {},
    "vit_base_patch16_reg4_gap_256": {},
    "vit_intern300m_patch14_448": {},
}
by_name = pytest.mark.parametrize("name", TOWERS)
double = pytest.mark.usefixtures("float64")


def tower(name, **options):
    return network(name.split(" ")[0], **(TOWERS[name] | options))


@double
@by_name
def test_same_outputs_and_gradients(name):
    ours = assert_same(tower(name))
    assert isinstance(ours, VisionTransformer)
    assert not ours.training


@by_name
def test_in_float32_as_accurate_as_timms(name):
    """Without a table that is more exact than timm's own."""
    import timm

    theirs = fill(
        timm.create_model(
            name.split(" ")[0],
            pretrained=False,
            img_size=(64, 96),
            patch_size=32,
            **(SIZES | TOWERS[name]),
        )
    ).eval()
    images = torch.randn(3, 3, 64, 96)
    ours, want = from_timm(theirs)(images), theirs(images)
    assert (ours - want).abs().max() <= 1e-4 * want.abs().max()


# Those whose positions change with the size, each in its way.
RESIZED = (
    "vit_small_patch14_reg4_dinov2",
    DINOV3,
    "eva02_tiny_patch14_224",
    "vit_base_patch16_siglip_224",
)


@double
@pytest.mark.parametrize("name", RESIZED)
def test_resampled_as_timm_does(name):
    theirs = tower(name)
    ours, side = from_timm(theirs), theirs.patch_embed.patch_size[0]
    size = (4 * side, 2 * side)
    ours.resample(size)
    theirs.set_input_size(img_size=size)
    images = images_for(theirs)
    if theirs.pos_embed is None:
        assert_near(ours(images), theirs(images))
    else:  # timm interpolates the table in float32
        want = theirs(images)
        assert (ours(images) - want).abs().max() <= 1e-5 * want.abs().max()


@double
@pytest.mark.parametrize("name", RESIZED)
def test_images_of_any_size_in_training_as_timm_with_dynamic_img_size(name):
    theirs = tower(name, dynamic_img_size=True)
    ours, side = from_timm(theirs.train()), theirs.patch_embed.patch_size[0]
    # Not of one column: torch interpolates wrongly to these in timm's layout of memory.
    images = torch.randn(2, 3, 3 * side, 2 * side)
    want = theirs(images)
    assert (ours(images) - want).abs().max() <= 1e-5 * want.abs().max()
    with pytest.raises(ValueError, match="height, width"):
        ours.eval()(images)
    ours.resample((3 * side, 2 * side))
    want = theirs.eval()(images)
    assert (ours(images) - want).abs().max() <= 1e-5 * want.abs().max()


PREFIX = {
    "vit_small_patch14_reg4_dinov2": 5,
    DINOV3: 5,
    "eva02_tiny_patch14_224": 1,
    "vit_base_patch32_clip_224": 1,
    "vit_base_patch16_siglip_224": 0,
}


def weights_in(theirs, images):
    """timm's own, unfused: what goes into the dropout of each block's weights."""
    seen, handles = [], []
    for block in theirs.blocks:
        block.attn.fused_attn = False
        handles.append(
            block.attn.attn_drop.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        )
    with torch.no_grad():
        theirs(images)
    for handle in handles:
        handle.remove()
    return seen


@double
@pytest.mark.parametrize("name", PREFIX)
def test_captured_weights_and_where_they_lie(name):
    theirs = tower(name)
    ours, images, prefix = from_timm(theirs), images_for(theirs), PREFIX[name]
    assert ours.num_prefix_tokens == prefix
    wanted = weights_in(theirs, images)
    with capture_attention(ours) as maps:
        ours(images)
    names = [f"encoder.layers.{index}.self_attn" for index in range(2)]
    pooled = ["attention_pool.attn"] if ours.pool == "attention" else []
    assert list(maps) == names + pooled
    for block, want in zip(names, wanted, strict=True):
        assert want.std() > 0.01  # not all alike
        assert_near(maps[block], want)
        assert maps.layout[block] == Layout((2, 3), (2, 3), num_prefix_tokens=prefix)
    for block in pooled:  # one query, which lies nowhere
        assert maps[block].shape == (2, 3, 1, 6)
        assert maps.layout[block] == Layout(None, (2, 3))


@double
@pytest.mark.parametrize("name", PREFIX)
def test_heat_of_the_class_token_and_of_a_point(name):
    theirs = tower(name)
    ours, images, prefix = from_timm(theirs), images_for(theirs), PREFIX[name]
    wanted, (height, width) = weights_in(theirs, images), images.shape[-2:]
    point = (0.75 * height, 0.5 * width)  # of the middle token in the second row
    rows = {prefix + 1 * 3 + 1: attention_heat(ours, images, at=point)}
    if prefix:
        rows[0] = attention_heat(ours, images)
    else:
        with pytest.raises(ValueError, match="no class token"):
            attention_heat(ours, images)
    for row, found in rows.items():
        assert list(found) == [f"encoder.layers.{index}.self_attn" for index in range(2)]
        for heat, weights in zip(found.values(), wanted, strict=True):
            grid = weights[:, :, row, prefix:].unflatten(-1, (2, 3))
            assert_near(heat, heat_on_image(grid, (height, width)))


@pytest.mark.parametrize("name", PREFIX)
def test_costs(name):
    """By hand: patches, four projections, scores and sums, the feed-forward network, the head."""
    theirs = tower(name)
    ours, dim, tokens = from_timm(theirs), 24, 6 + PREFIX[name]
    ffn = ours.encoder.layers[0].ffn
    linear = 4 * dim * dim + (3 if ffn.gate is not None else 2) * dim * ffn.fc1.out_features
    macs = 6 * ours.stem.weight.numel() + 5 * dim + 2 * tokens * (linear + 2 * tokens * dim)
    if ours.attention_pool is not None:
        macs += 2 * dim * dim + 6 * 2 * dim * dim + 2 * 6 * dim + 2 * dim * ffn.fc1.out_features
    assert count_macs(ours, images_for(theirs, batch=1)) == macs
    own = 0 if theirs.pos_embed is None else theirs.pos_embed.shape[1] - 6
    assert count_parameters(ours) == count_parameters(theirs) - own * dim


ARGUMENTS = {
    "vit_small_patch14_reg4_dinov2": {"num_registers": 4, "layer_scale": 1e-5, "pool": "cls"},
    DINOV3: {
        "class_token": True,
        "num_registers": 4,
        "layer_scale": 1e-5,
        "positions": "none",
        "rotary": {"theta": 100.0, "coordinates": "centered", "pairs": "halves"},
        "qkv_bias": False,
        "norm_eps": 1e-5,
    },
    "eva02_tiny_patch14_224": {
        "class_token": True,
        "ffn_dim": 64,
        "activation": "swiglu",
        "rotary": {"theta": 10000.0, "reference": [16, 16]},
        "qkv_bias": "qv",
        "fc_norm": True,
    },
    "vit_base_patch16_siglip_224": {"pool": "attention"},
}


@double
@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_saved_and_loaded(name, ending, tmp_path):
    theirs = tower(name)
    ours, images = from_timm(theirs), images_for(theirs)
    arguments = {
        "num_classes": 5,
        "image_size": list(images.shape[-2:]),
        "patch_size": theirs.patch_embed.patch_size[0],
        "embed_dim": 24,
        "num_heads": 3,
        "num_layers": 2,
        "ffn_dim": 96,
    }
    path = tmp_path / f"tower.{ending}"
    cvattn.checkpoint.save(path, ours, args=arguments | ARGUMENTS[name], meta={})
    loaded = cvattn.load(path)
    assert not loaded.training
    assert torch.equal(loaded(images), ours(images))


SLOWER = (
    "eva02_tiny_patch14_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_base_patch32_clip_quickgelu_224",
)


@pytest.mark.parametrize(
    "name",
    [DINOV3, "vit_base_patch16_siglip_224"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in SLOWER],
)
def test_exported(name):
    theirs = tower(name)
    ours, images = from_timm(theirs), images_for(theirs)
    program = torch.export.export(ours, (images,))
    assert_near(program.module()(images), theirs(images))
    copied = copy.deepcopy(ours)
    assert torch.equal(copied(images), ours(images))


@pytest.mark.parametrize("name", [DINOV3, "eva02_tiny_patch14_224", "vit_base_patch16_siglip_224"])
def test_half_precision_mode_frozen_parts_and_checkpointing_follow(name):
    theirs = tower(name).bfloat16().train()
    theirs.set_grad_checkpointing()
    frozen = [theirs.cls_token, theirs.pos_embed, theirs.reg_token, theirs.head.weight]
    for parameter in frozen:
        if parameter is not None:
            parameter.requires_grad_(False)
    ours = from_timm(theirs)
    assert ours.training
    assert ours.encoder.gradient_checkpointing
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    names = {name for name, p in ours.named_parameters() if not p.requires_grad}
    kept = zip(("class_token", "positions.table", "registers", "head.weight"), frozen, strict=True)
    assert names == {name for name, parameter in kept if parameter is not None}
    if ours.rotary is not None:
        assert ours.rotary.table.dtype == torch.float32


def test_a_table_that_is_not_what_its_attributes_say():
    """Attributes changed after the table was made, or the table itself."""
    theirs = tower("eva02_tiny_patch14_224")
    del theirs.rope.get_embed
    theirs.rope.temperature = 100.0
    with pytest.raises(ValueError, match="the table of RotaryEmbeddingCat is another"):
        from_timm(theirs)
    theirs = tower(DINOV3, dynamic_img_size=False)
    del theirs.rope.get_embed
    theirs.rope.pos_embed_cached.mul_(0.99)
    with pytest.raises(ValueError, match="the table of RotaryEmbeddingDinoV3 is another"):
        from_timm(theirs)


def test_of_one_block_changed_by_hand():
    theirs = tower("eva02_tiny_patch14_224")
    theirs.blocks[1].attn.num_prefix_tokens = 2
    with pytest.raises(ValueError, match="num_prefix_tokens that differ"):
        from_timm(theirs)
    theirs = tower("eva02_tiny_patch14_224")
    theirs.blocks[1].attn.rotate_half = True
    with pytest.raises(ValueError, match="rope_rotate_half"):
        from_timm(theirs)
    theirs = tower(f"{DINOV3}_qkvb")
    theirs.blocks[1].attn.k_bias.fill_(0.5)
    with pytest.raises(ValueError, match=r"a k_bias that is not 0 in blocks\.1"):
        from_timm(theirs)

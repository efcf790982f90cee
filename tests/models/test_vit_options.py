"""What other libraries' towers are made of: options of VisionTransformer, and timm's networks."""

import copy

import pytest
import timm
import torch
from oracles import assert_near, fill, outcome
from timm.models.eva import Eva

from cvattn.cost import count_macs
from cvattn.maps import capture_attention
from cvattn.models import VisionTransformer

SIZES = {"embed_dim": 24, "num_heads": 3, "ffn_dim": 40, "num_layers": 2, "patch_size": 2}
DINOV3 = {"theta": 100.0, "coordinates": "centered", "pairs": "halves"}
double = pytest.mark.usefixtures("float64")


def make(num_classes: int = 5, **options) -> VisionTransformer:
    return fill(VisionTransformer(num_classes, **({"image_size": (6, 10)} | SIZES | options)))


def copied(ours, theirs):
    """The weights of timm's ViT or Eva by their names; what is missing on either side is said."""
    state, found = dict(theirs.state_dict()), {}

    def take(name, to, part=None):
        for kind in ("weight", "bias"):
            if f"{name}.{kind}" in state:
                value = state.pop(f"{name}.{kind}")
                found[f"{to}.{kind}"] = value if part is None else value.chunk(3)[part]

    take("patch_embed.proj", "stem")
    for name, to in (("norm_pre", "pre_norm"), ("norm", "encoder.norm")):
        take(name, to)
    take("fc_norm", "fc_norm")
    take("head", "head")
    table = state.pop("pos_embed", None)
    token, registers = state.pop("cls_token", None), state.pop("reg_token", None)
    if table is not None:
        own = table.shape[1] - ours.grid[0] * ours.grid[1]
        found |= {"positions.table": table[0, own:], "positions.grid": torch.tensor(ours.grid)}
        token = token if token is None or not own else token + table[:, :1]
        registers = registers if registers is None or own < 2 else registers + table[:, 1:own]
    if token is not None:
        found["class_token"] = token[0, 0]
    if registers is not None:
        found["registers"] = registers[0]
    for index in range(len(ours.encoder.layers)):
        block, layer = f"blocks.{index}.", f"encoder.layers.{index}."
        for name in ("weight", "bias"):
            packed = state.pop(f"{block}attn.qkv.{name}", None)
            for kind, value in zip("qkv", () if packed is None else packed.chunk(3), strict=False):
                found[f"{layer}self_attn.{kind}_proj.{name}"] = value
        for kind in "qkv":
            take(f"{block}attn.{kind}_proj", f"{layer}self_attn.{kind}_proj")
            if f"{block}attn.{kind}_bias" in state:
                found[f"{layer}self_attn.{kind}_proj.bias"] = state.pop(f"{block}attn.{kind}_bias")
        take(f"{block}attn.proj", f"{layer}self_attn.out_proj")
        for name, to in (("fc1_g", "gate"), ("fc1_x", "fc1"), ("fc1", "fc1"), ("fc2", "fc2")):
            take(f"{block}mlp.{name}", f"{layer}ffn.{to}")
        take(f"{block}mlp.norm", f"{layer}ffn.norm")
        for kind in "qk":
            take(f"{block}attn.{kind}_norm", f"{layer}self_attn.{kind}_norm")
        for number in "12":
            take(f"{block}norm{number}", f"{layer}norm{number}")
            for name in (f"{block}gamma_{number}", f"{block}ls{number}.gamma"):
                if name in state:
                    found[f"{layer}branch{number}.0.gamma"] = state.pop(name)
    if "attn_pool.latent" in state:
        found["attention_pool.query"] = state.pop("attn_pool.latent")[0, 0]
        for kind in ("weight", "bias"):
            key, value = state.pop(f"attn_pool.kv.{kind}").chunk(2)
            found |= {f"attention_pool.attn.k_proj.{kind}": key}
            found |= {f"attention_pool.attn.v_proj.{kind}": value}
        take("attn_pool.q", "attention_pool.attn.q_proj")
        take("attn_pool.proj", "attention_pool.attn.out_proj")
        take("attn_pool.norm", "attention_pool.norm")
        take("attn_pool.mlp.fc1", "attention_pool.ffn.fc1")
        take("attn_pool.mlp.fc2", "attention_pool.ffn.fc2")
    assert not state, sorted(state)
    ours.load_state_dict(found)
    return ours.eval()


def timm_vit(**options):
    sizes = {"img_size": (6, 10), "patch_size": 2, "embed_dim": 24, "depth": 2, "num_heads": 3}
    sizes |= {"mlp_ratio": 40 / 24, "num_classes": 5}
    return fill(timm.models.vision_transformer.VisionTransformer(**(sizes | options)))


def timm_eva(**options):
    sizes = {"img_size": (6, 10), "patch_size": 2, "embed_dim": 24, "depth": 2, "num_heads": 3}
    sizes |= {"mlp_ratio": 40 / 24, "num_classes": 5, "use_rot_pos_emb": True}
    theirs = fill(Eva(**(sizes | options)))
    name = "pos_embed" if "pos_embed" in theirs.rope._buffers else "pos_embed_cached"
    return theirs.eval(), name


TIMM_VITS = {
    "DINOv2 with registers": (
        {"reg_tokens": 4, "init_values": 0.3, "no_embed_class": True},
        {"pool": "cls", "num_registers": 4, "layer_scale": 0.3},
    ),
    "DINOv2's mean": (
        {"global_pool": "avg", "fc_norm": False, "reg_tokens": 3},
        {"pool": "mean", "class_token": True, "num_registers": 3},
    ),
    "CLIP": (
        {"pre_norm": True, "act_layer": timm.layers.QuickGELU},
        {"pool": "cls", "pre_norm": True, "stem_bias": False, "activation": "quick_gelu"},
    ),
    "SigLIP": (
        {"class_token": False, "global_pool": "map", "act_layer": timm.layers.GELUTanh},
        {"pool": "attention", "activation": "gelu_tanh"},
    ),
    "qk_norm, the norm after pooling": (
        {"global_pool": "avg", "class_token": False, "qk_norm": True},
        {"fc_norm": True, "qk_norm": "layer"},
    ),
    "no head": ({"num_classes": 0, "qkv_bias": False}, {"pool": "cls", "qkv_bias": False}),
}


@double
@pytest.mark.parametrize("name", TIMM_VITS)
def test_equals_timms_vits(name):
    theirs, options = TIMM_VITS[name]
    theirs = timm_vit(**theirs).eval()
    ours = copied(make(getattr(theirs, "num_classes", 5), **options), theirs)
    x = torch.randn(2, 3, 6, 10)
    got, want = outcome(ours, x), outcome(theirs, x)
    assert_near(got[0], want[0])
    assert_near(got[1], want[1])


TIMM_EVAS = {
    "EVA-02": (
        {"swiglu_mlp": True, "scale_mlp": True, "ref_feat_shape": (4, 4), "qkv_fused": False},
        {
            "activation": "swiglu",
            "ffn_norm": True,
            "rotary": {"theta": 10000.0, "reference": [4, 4]},
            "class_token": True,
            "fc_norm": True,
        },
    ),
    "DINOv3": (
        {
            "use_abs_pos_emb": False,
            "rope_type": "dinov3",
            "rope_temperature": 100.0,
            "rope_rotate_half": True,
            "num_reg_tokens": 4,
            "init_values": 0.3,
            "qkv_fused": True,
            "use_fc_norm": False,
            "dynamic_img_size": False,
        },
        {
            "positions": "none",
            "rotary": DINOV3,
            "num_registers": 4,
            "layer_scale": 0.3,
            "class_token": True,
        },
    ),
}


@double
@pytest.mark.parametrize("name", TIMM_EVAS)
def test_equals_timms_evas(name):
    """timm's rotary table, which is made in float32, replaced by ours."""
    arguments, options = TIMM_EVAS[name]
    theirs, table = timm_eva(**arguments)
    ours = copied(make(qkv_bias="qv", **options), theirs)
    assert all(layer.self_attn.k_proj.bias is None for layer in ours.encoder.layers)
    rotation = ours.rotary(ours.grid)
    cos, sin = (
        part.repeat(1, 2) if rotation.pairs == "halves" else part.repeat_interleave(2, 1)
        for part in (part[ours.num_prefix_tokens :] for part in (rotation.cos, rotation.sin))
    )
    exact = torch.cat([sin, cos], dim=-1)
    before = getattr(theirs.rope, table)
    assert (before.double() - exact).abs().max() < 1e-4
    setattr(theirs.rope, table, exact)
    x = torch.randn(2, 3, 6, 10)
    got, want = outcome(ours, x), outcome(theirs, x)
    assert_near(got[0], want[0])
    assert_near(got[1], want[1])
    setattr(theirs.rope, table, torch.zeros_like(exact))
    assert (theirs(x) - got[0]).abs().max() > 1e-3


@double
def test_registers_have_no_position_and_stand_after_the_class_token():
    model = make(num_registers=2, pool="cls", positions="sincos", rotary={})
    assert model.num_prefix_tokens == 3
    x = torch.randn(2, 3, 6, 10)
    tokens = model.tokens(x)
    assert torch.equal(tokens[:, 0], model.class_token.expand(2, -1))
    assert torch.equal(tokens[:, 1:3], model.registers.expand(2, -1, -1))
    assert tokens.shape == (2, 18, 24)
    rotation = model.rotation(x)
    assert (rotation.cos[:3] == 1).all()
    assert (rotation.sin[:3] == 0).all()
    assert not (rotation.cos[4:] == 1).all(dim=1).any()
    assert {"registers", "class_token"} <= model.no_weight_decay()
    before = model(x)
    with torch.no_grad():
        model.registers.mul_(2)
    assert (model(x) - before).abs().max() > 1e-3


@double
@pytest.mark.parametrize("prefix", [{}, {"class_token": True, "num_registers": 2}])
def test_features_of_chosen_layers(prefix):
    model = make(rotary={}, relative_bias=True, **prefix).eval()
    x = torch.randn(2, 3, 6, 10)
    y, each = model.tokens(x), []
    for layer in model.encoder.layers:
        y = layer(y, attn_bias=model.attn_bias(x), rotary=model.rotation(x))
        each.append(y)
    last, first = model.features(x, [-1, 0], maps=False)
    assert_near(last, model.encoder.norm(each[1]))
    assert_near(first, model.encoder.norm(each[0]))
    (found,) = model.features(x, [0], norm=False)
    assert found.shape == (2, 24, 3, 5)
    for row in range(3):
        for column in range(5):
            token = each[0][:, model.num_prefix_tokens + 5 * row + column]
            assert_near(found[:, :, row, column], token)
    assert_near(model.features(x)[0].mean((2, 3)), last[:, model.num_prefix_tokens :].mean(1))
    assert_near(model(x), model.head(model.features(x)[0].mean((2, 3))))


@double
@pytest.mark.parametrize("rotary", [{}, DINOV3, {"reference": (3, 5)}])
def test_rotary_positions_in_other_sizes(rotary):
    """In training each image's own grid; in eval after resample(), which changes no weight."""
    model = make(rotary=rotary, positions="none")
    x = torch.randn(2, 3, 10, 6)
    training = model(x)
    with pytest.raises(ValueError, match="height, width"):
        model.eval()(x)
    state = copy.deepcopy(model.state_dict())
    model.resample((10, 6))
    assert model.rotary.grid == (5, 3)
    assert model.rotary.table.shape[1] == 15
    assert_near(model(x), training)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert (model(x) - model(x.flip(2))).abs().max() > 1e-3
    there = VisionTransformer(
        5, **(SIZES | {"image_size": (10, 6)}), rotary=rotary, positions="none"
    )
    there.load_state_dict(state)
    assert_near(there.eval()(x), training)


def test_none_of_it_changes_what_there_was():
    names = {name.split(".")[0] for name in make(pool="cls").state_dict()}
    assert names == {"class_token", "stem", "positions", "encoder", "head"}
    torch.manual_seed(4)
    plain = VisionTransformer(5, **SIZES)
    torch.manual_seed(4)
    told = VisionTransformer(
        5, **SIZES, class_token=False, num_registers=0, rotary=None, norm="layer", qkv_bias=True
    )
    for name, value in plain.state_dict().items():
        assert torch.equal(value, told.state_dict()[name]), name


def test_checkpointing_devices_and_what_is_refused():
    model = make(gradient_checkpointing=True, dropout=0.1).train()
    x = torch.randn(2, 3, 6, 10)
    found = []
    for flag in (True, False):
        model.encoder.gradient_checkpointing = flag
        torch.manual_seed(1)
        found.append(outcome(model, x))
    for got, want in zip(*(each[:2] for each in found), strict=True):
        assert torch.equal(got, want)
    options = {"pool": "attention", "num_registers": 2, "rotary": {}, "relative_bias": True}
    for positions in ("learned", "sincos"):
        meta = VisionTransformer(
            5, **SIZES, **options, positions=positions, device="meta", dtype=torch.bfloat16
        )
        assert {p.dtype for p in meta.parameters()} == {torch.bfloat16}
        assert all(p.is_meta for p in meta.parameters())
        assert meta.rotary.table.dtype == torch.float32
        made = VisionTransformer(
            5, **SIZES, **options, positions=positions, device="cpu", dtype=torch.float64
        )
        assert made(torch.randn(1, 3, 32, 32, dtype=torch.float64)).dtype == torch.float64
    with pytest.raises(ValueError, match="needs a class token"):
        VisionTransformer(5, pool="cls", class_token=False)
    with pytest.raises(ValueError, match="fc_norm=True is a last norm; given final_norm=False"):
        VisionTransformer(5, fc_norm=True, final_norm=False)
    with pytest.raises(TypeError, match="thetta"):
        VisionTransformer(5, rotary={"thetta": 5.0})


def test_an_attention_pool_is_counted_and_looked_at():
    model, x = make(pool="attention", num_registers=2), torch.randn(1, 3, 6, 10)
    tokens, pairs, width = 17, 17 * 17, 24
    layer = tokens * width * (4 * width + 2 * 40) + 2 * pairs * width
    pool = 15 * width * 2 * width + 2 * width * width + 2 * 15 * width + 2 * width * 40
    stem = 15 * 12 * width
    assert count_macs(model, x) == 2 * layer + pool + stem + 5 * width
    with capture_attention(model) as maps:
        model(x)
    assert maps["attention_pool.attn"].shape == (1, 3, 1, 15)
    assert maps["encoder.layers.1.self_attn"].shape == (1, 3, 17, 17)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"rotary": {}, "num_registers": 2, "pool": "cls", "norm": "rms", "qk_norm": "rms"},
        pytest.param(
            {"pool": "attention", "activation": "swiglu", "positions": "none", "rotary": DINOV3},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_compiles_whole_exports_and_runs_in_half_precision(options):
    model, x = make(**options).eval(), torch.randn(2, 3, 6, 10)
    torch._dynamo.reset()
    want = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), want)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), want)
    half = copy.deepcopy(model).bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - want).abs().max() < 0.2 * want.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).isfinite().all()

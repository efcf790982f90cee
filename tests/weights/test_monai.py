"""from_monai and to_monai: exact both ways with the real blocks, honest about the rest."""

import pytest
import torch
from oracles import assert_hides, assert_near, fill, outcome
from torch import nn

from cvattn import (
    CrossAttention2d,
    MultiHeadAttention,
    SelfAttention1d,
    SelfAttention2d,
    SelfAttention3d,
)
from cvattn.weights import from_monai, to_monai

pytest.importorskip("monai", reason="pip install -e '.[peers]'")
blocks = pytest.importorskip("monai.networks.blocks")
SABlock, SpatialAttentionBlock = blocks.SABlock, blocks.SpatialAttentionBlock

C = 12
KINDS = {1: SelfAttention1d, 2: SelfAttention2d, 3: SelfAttention3d}
SIZES = {1: (7,), 2: (5, 3), 3: (2, 5, 3)}


def spatial(dimensions=2, **options):
    options = {"num_head_channels": 4, "norm_num_groups": 3, "norm_eps": 1e-3} | options
    return fill(SpatialAttentionBlock(dimensions, C, **options)).eval()


def tokens(**options):
    return fill(SABlock(C, 3, **options)).eval()


CASES = {
    "1-d": lambda: spatial(1),
    "2-d": lambda: spatial(2),
    "3-d": lambda: spatial(3),
    "2-d, one head": lambda: spatial(2, num_head_channels=None),
    "2-d, one layer for all": lambda: spatial(2, use_combined_linear=True),
    "2-d, fused": lambda: spatial(2, use_flash_attention=True),
    "tokens": tokens,
    "tokens, biases": lambda: tokens(qkv_bias=True),
    "tokens, three layers": lambda: tokens(qkv_bias=True, use_combined_linear=False),
    "tokens, fused": lambda: tokens(use_flash_attention=True, dim_head=4),
}
every = pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())


def input_of(theirs):
    sizes = SIZES[theirs.spatial_dims] if isinstance(theirs, SpatialAttentionBlock) else None
    return torch.randn(2, 7, C) if sizes is None else torch.randn(2, C, *sizes)


@every
@pytest.mark.usefixtures("float64")
def test_same_outputs_and_gradients(make):
    theirs = make()
    ours = from_monai(theirs)
    is_map = isinstance(theirs, SpatialAttentionBlock)
    assert type(ours) is (KINDS[theirs.spatial_dims] if is_map else MultiHeadAttention)
    assert not ours.training
    x = input_of(theirs)
    *want, wanted = outcome(theirs, x)
    *got, found = outcome(ours, x)
    assert (want[0] - x).abs().max() > 0.1
    for each, other in zip(got, want, strict=True):
        assert_near(each, other)
    names = ("query", "key", "value") if is_map else ("q_proj", "k_proj", "v_proj")
    attn, inner = (theirs.attn, "attn.") if is_map else (theirs, "")
    packed = attn.use_combined_linear
    mine = [found[f"{name}.weight"].flatten(1) for name in names]
    others = ["qkv"] if packed else ["to_q", "to_k", "to_v"]
    assert_near(torch.cat(mine), torch.cat([wanted[f"{inner}{n}.weight"] for n in others]))
    last = "proj" if is_map else "out_proj"
    assert_near(found[f"{last}.weight"].flatten(1), wanted[f"{inner}out_proj.weight"])
    assert len(found) == len(wanted) + (2 * len([n for n in wanted if ".qkv." in f".{n}"]))


@every
def test_there_and_back(make):
    theirs = make()
    frozen = theirs.get_submodule("attn" if hasattr(theirs, "attn") else "").out_proj.weight
    frozen.requires_grad_(False)
    ours = from_monai(theirs)
    back = to_monai(ours)
    assert type(back) is type(theirs)
    again = from_monai(back.train())
    assert again.training
    first, second = ours.state_dict(), again.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
        assert tensor.data_ptr() != second[name].data_ptr()
    assert [n for n, p in back.named_parameters() if not p.requires_grad] == [
        n for n, p in theirs.named_parameters() if not p.requires_grad
    ]
    x = input_of(theirs)
    with torch.no_grad():
        torch.testing.assert_close(back.eval()(x), theirs(x))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("use_combined_linear", [False, True])
def test_the_mask_of_theirs(use_combined_linear):
    theirs = tokens(use_combined_linear=use_combined_linear)
    x, mask = torch.randn(2, 7, C), torch.ones(2, 7)
    mask[0, 4:] = 0
    mask[1, :2] = 0
    assert_hides(mask.bool())
    ours = from_monai(theirs)
    assert_near(ours(x, attn_mask=mask.bool()[:, None, None]), theirs(x, mask))


def test_dtype_follows_and_nothing_is_drawn():
    theirs = spatial().to(torch.bfloat16)
    before = torch.get_rng_state()
    ours = from_monai(theirs)
    assert torch.equal(torch.get_rng_state(), before)
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    assert to_monai(ours).attn.to_q.weight.dtype == torch.bfloat16


def hooked(block):
    block.out_proj.register_forward_hook(lambda *_: None)
    return block


def with_parts(block, **parts):
    for name, part in parts.items():
        setattr(block, name, part)
    return block


REFUSED = {
    "causal": (lambda: tokens(causal=True, sequence_length=7), "causal=True"),
    "positions": (
        lambda: tokens(rel_pos_embedding="decomposed", input_size=(7, 7)),
        "rel_pos_embedding",
    ),
    "no last layer": (lambda: spatial(include_fc=False), "include_fc=False"),
    "kept": (lambda: tokens(save_attn=True), "save_attn=True"),
    "dropout": (lambda: tokens(dropout_rate=0.25), r"dropout_rate=0\.25"),
    "dtype": (lambda: spatial(attention_dtype=torch.float16), "attention_dtype=torch.float16"),
    "width": (
        lambda: tokens(dim_head=5),
        r"num_heads \* dim_head=15 unlike the input's 12",
    ),
    "dimensions": (lambda: spatial(4), "spatial_dims=4; expected 1, 2 or 3"),
    "hook": (lambda: hooked(tokens()), "out_proj has forward hooks"),
    "adapter": (
        lambda: with_parts(tokens(), qkv=nn.Sequential(nn.Linear(C, 3 * C))),
        "qkv is a .*Sequential; expected Linear",
    ),
    "another inside": (lambda: with_parts(spatial(), attn=nn.Linear(C, C)), "attn is a Linear"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        from_monai(make())


class Renamed(SABlock):
    pass


def test_other_types():
    with pytest.raises(TypeError, match="got a Renamed; expected MONAI's SABlock or Spatial"):
        from_monai(Renamed(C, 3))
    with pytest.raises(TypeError, match="got a CrossAttention2d; expected SelfAttention1d"):
        to_monai(CrossAttention2d(C))


def without(block, *names):
    for name in names:
        block.get_submodule(name).register_parameter("bias", None)
    return block


def unet(**options):
    return SelfAttention2d.unet(C, groups=3, **options)


HAS_NOT = {
    "norm, gamma": (lambda: SelfAttention2d(C), "no norm, gamma"),
    "batch norm": (lambda: SelfAttention3d.non_local(C), "a batch norm behind the projection"),
    "pooled": (lambda: unet(kv_pool=2), "kv_pool"),
    "relative bias": (lambda: unet(grid=(3, 5)), "a relative bias"),
    "dropout": (lambda: unet(dropout=0.1), "dropout of weights alone"),
    "scale": (lambda: unet(scale=0.3), r"scale=0\.3"),
    "widths": (lambda: unet(qk_channels=6), "another width of q or v"),
    "no last bias": (lambda: without(unet(), "proj"), "no bias in the last projection"),
    "some biases": (lambda: without(unet(), "key"), "a bias in some of query, key and value"),
    "no biases": (lambda: without(unet(), "query", "key", "value"), "no biases in query, key"),
    "context": (lambda: MultiHeadAttention(C, 2, kdim=5), "kdim or vdim"),
    "zero": (lambda: MultiHeadAttention(C, 2, add_zero_attn=True), "add_zero_attn"),
    "normed": (lambda: MultiHeadAttention(C, 2, qk_norm="rms"), "qk_norm"),
}


@pytest.mark.parametrize(("make", "message"), HAS_NOT.values(), ids=HAS_NOT.keys())
def test_what_monai_has_not(make, message):
    with pytest.raises(ValueError, match=message + ".*which MONAI's block has not"):
        to_monai(make())

"""replace_attention on networks of diffusers and MONAI: as they are called by their own code."""

import copy
import warnings

import pytest
import torch
from oracles import assert_hides, assert_near, fill
from replaced import assert_same_network, replaced
from torch import nn

import cvattn
from cvattn import CrossAttention2d, MultiHeadAttention, SelfAttention2d, SelfAttention3d
from cvattn.cost import explain_attention

diffusers = pytest.importorskip("diffusers", reason="pip install -e '.[peers]'")
monai = pytest.importorskip("monai.networks", reason="pip install -e '.[peers]'")
processors = pytest.importorskip("diffusers.models.attention_processor")
Attention = processors.Attention
SABlock, SpatialAttentionBlock = monai.blocks.SABlock, monai.blocks.SpatialAttentionBlock

SMALL = {"norm_num_groups": 4, "block_out_channels": (8, 16), "layers_per_block": 1}


def unet2d(**options):
    options = {"attention_head_dim": 4, "sample_size": 16} | options
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    net = diffusers.UNet2DModel(down_block_types=down, up_block_types=up, **SMALL | options)
    return fill_gently(net)


def conditional(**options):
    return fill_gently(
        diffusers.UNet2DConditionModel(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
            cross_attention_dim=10,
            **SMALL | options,
        )
    )


def autoencoder():
    down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    return fill_gently(diffusers.AutoencoderKL(down_block_types=down, up_block_types=up, **SMALL))


def monai_unet(cross=False):
    return fill_gently(
        monai.nets.DiffusionModelUNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            channels=(8, 16),
            attention_levels=(False, True),
            num_res_blocks=1,
            num_head_channels=4,
            norm_num_groups=4,
            with_conditioning=cross,
            cross_attention_dim=6 if cross else None,
        )
    )


def monai_vit():
    return fill_gently(
        monai.nets.ViT(
            in_channels=1,
            img_size=(16, 24),
            patch_size=8,
            hidden_size=12,
            mlp_dim=16,
            num_layers=2,
            num_heads=3,
            spatial_dims=2,
        )
    )


def fill_gently(network):
    """Other values than the first, such that a deep network still passes them on."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


NETWORKS = {
    "UNet2DModel": (unet2d, lambda net, x: net(x, 5).sample, [(2, 3, 16, 24)], 4),
    "AutoencoderKL": (
        autoencoder,
        lambda net, x: net(x, sample_posterior=False).sample,
        [(2, 3, 16, 24)],
        2,
    ),
    "UNet2DConditionModel": (
        conditional,
        lambda net, x, text: net(x, 5, text).sample,
        [(2, 4, 16, 24), (2, 7, 10)],
        8,
    ),
    "MONAI U-Net": (
        monai_unet,
        lambda net, x: net(x, torch.tensor([3])),
        [(1, 1, 4, 8, 8)],
        4,
    ),
    "MONAI ViT": (monai_vit, lambda net, x: net(x)[0], [(2, 1, 16, 24)], 2),
}


@pytest.mark.parametrize(("make", "run", "shapes", "count"), NETWORKS.values(), ids=NETWORKS.keys())
@pytest.mark.usefixtures("float64")
def test_same_outputs_and_gradients(make, run, shapes, count):
    theirs = make()
    before = torch.get_rng_state()
    ours = replaced(theirs)
    assert torch.equal(torch.get_rng_state(), before)
    inputs = [torch.randn(shape) for shape in shapes]
    assert_same_network(theirs, ours, run, *inputs)
    with cvattn.capture_attention(ours) as maps, torch.no_grad():
        run(ours, *inputs)
    assert len(maps) == count
    assert not [m for m in ours.modules() if isinstance(m, (Attention, SABlock))]
    again = copy.deepcopy(ours)
    again.load_state_dict(ours.state_dict())
    assert_near(run(again, *inputs), run(ours, *inputs))


def test_a_replaced_unet_is_looked_into_costed_and_exported():
    ours = replaced(unet2d())
    x, time = torch.randn(1, 3, 16, 24), torch.tensor(5)
    costs = explain_attention(ours, x, time)
    assert [cost.name for cost in costs] == [
        "down_blocks.1.attentions.0.attention",
        "mid_block.attentions.0.attention",
        "up_blocks.0.attentions.0.attention",
        "up_blocks.0.attentions.1.attention",
    ]
    assert {(cost.queries, cost.heads) for cost in costs} == {(96, 4)}
    large = explain_attention(ours, torch.randn(1, 3, 128, 128, device="meta"), time)
    assert max(cost.peak_bytes for cost in large) < 4 * 4096**2  # of one head's scores
    with cvattn.capture_attention(ours, rows=[7]) as maps, torch.no_grad():
        want = ours(x, time).sample
    assert maps["mid_block.attentions.0.attention"].shape == (1, 4, 1, 96)
    assert maps.layout["mid_block.attentions.0.attention"].query_grid == (8, 12)
    program = torch.export.export(ours, (x, time))
    torch.testing.assert_close(program.module()(x, time).sample, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    theirs = unet2d().to(dtype)
    ours = replaced(theirs)
    assert {p.dtype for p in ours.parameters()} == {dtype}
    x = torch.randn(1, 3, 16, 24, dtype=dtype)
    exact = copy.deepcopy(theirs).double()
    with torch.no_grad():
        want = exact(x.double(), 5).sample
        errors = [(net(x, 5).sample.double() - want).abs().max() for net in (ours, theirs)]
    assert errors[0] <= 2 * errors[1]


@pytest.mark.usefixtures("float64")
def test_masks_of_the_network():
    """diffusers turns them into a bias of 0 and -10000, (B, 1, S); bool masks are taken too."""
    theirs = conditional()
    ours = replaced(theirs)
    x, text = torch.randn(2, 4, 16, 24), torch.randn(2, 7, 10)
    seen = assert_hides(torch.arange(7) < torch.tensor([5, 2])[:, None])
    want = theirs(x, 5, text, encoder_attention_mask=seen).sample
    assert_near(ours(x, 5, text, encoder_attention_mask=seen).sample, want)
    assert (theirs(x, 5, text).sample - want).abs().max() > 1e-3


MASKS = {
    "keys": (2, 1, 7),
    "queries and keys": (2, 5, 7),
    "heads": (6, 1, 7),
    "heads, queries": (6, 5, 7),
    "flat": (2, 7),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("kind", ["bool", "bias"])
def test_masks_of_the_layer(shape, kind):
    theirs = nn.Sequential(fill(Attention(12, heads=3, dim_head=4, cross_attention_dim=8)))
    ours = replaced(theirs)
    x, text = torch.randn(2, 5, 12), torch.randn(2, 7, 8)
    mask = torch.randn(shape)
    if kind == "bool":
        mask = assert_hides(mask > 0)
        mask[..., 0] = True
    want = theirs[0](x, text, attention_mask=mask)
    assert_near(ours[0](x, text, attention_mask=mask, temb=torch.randn(2, 9)), want)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("fused", [False, True])
def test_masks_of_monai(fused):
    theirs = nn.Sequential(fill(SABlock(12, 3, use_flash_attention=fused)))
    ours = replaced(theirs)
    x, mask = torch.randn(2, 7, 12), assert_hides(torch.rand(2, 7) > 0.4)
    mask[:, 0] = True
    if fused:
        bias = torch.randn(2, 1, 1, 7)
        assert_near(ours[0](x, bias), theirs[0](x, bias))
        mask = mask[:, None, None]
    else:
        assert_near(ours[0](x, mask.double()), theirs[0](x, mask.double()))
        with pytest.raises(ValueError, match=r"shape \(2, 5\); expected \(2, 7\)"):
            ours[0](x, mask[:, :5])
    assert_near(ours[0](x, mask), theirs[0](x, mask))


def test_a_context_on_a_map():
    options = {"norm_num_groups": 3, "residual_connection": True, "cross_attention_dim": 5}
    theirs = nn.Sequential(fill(Attention(12, heads=3, dim_head=4, **options))).double()
    ours = replaced(theirs)
    assert type(ours[0].attention) is CrossAttention2d
    x, text = torch.randn(2, 12, 3, 5).double(), torch.randn(2, 7, 5).double()
    assert_near(ours[0](x, encoder_hidden_states=text), theirs[0](x, text))
    with pytest.raises(ValueError, match="encoder_hidden_states is None; expected the context's"):
        ours[0](x)
    with pytest.raises(ValueError, match="takes no attention_mask"):
        ours[0](x, text, torch.zeros(2, 1, 7))


def test_calls_that_cannot_be_honoured():
    ours = replaced(unet2d()).mid_block.attentions[0]
    tokens = replaced(conditional()).mid_block.attentions[0].transformer_blocks[0].attn1
    x, given = torch.randn(1, 16, 3, 5), torch.randn(1, 7, 16)
    assert ours(x, ip_hidden_states=None).shape == x.shape
    for call, message in (
        (lambda: ours(x, encoder_hidden_states=given), "takes no encoder_hidden_states"),
        (lambda: ours(x, attention_mask=torch.zeros(1, 1, 15)), "takes no attention_mask"),
        (lambda: ours(x, scale=0.5), "in this place takes no scale"),
        (lambda: tokens(given, ip_hidden_states=given, area=2), "no ip_hidden_states, area"),
        (lambda: tokens(given, attention_mask=torch.zeros(3, 1, 7)), r"\(3, 1, 7\); expected \(1"),
        (lambda: tokens(x), r"query has shape \(1, 16, 3, 5\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.usefixtures("float64")
def test_processors_of_a_replaced_network():
    theirs = conditional()
    ours = replaced(theirs)
    x, text = torch.randn(1, 4, 16, 16), torch.randn(1, 7, 10)
    want = theirs(x, 5, text).sample
    assert ours.attn_processors.keys() == theirs.attn_processors.keys()
    for change in (
        ours.set_default_attn_processor,
        ours.fuse_qkv_projections,
        ours.unfuse_qkv_projections,
        lambda: ours.set_attention_slice("auto"),
        lambda: ours.set_attn_processor(processors.AttnProcessor2_0()),
    ):
        change()
        assert_near(ours(x, 5, text).sample, want)
    other = processors.IPAdapterAttnProcessor2_0(hidden_size=16, cross_attention_dim=10)
    with pytest.raises(ValueError, match="IPAdapterAttnProcessor2_0 may compute something else"):
        ours.set_attn_processor(other)
    assert_near(ours(x, 5, text).sample, want)


def test_where_the_processors_differ_only_the_own_kind_is_taken():
    options = {"heads": 3, "dim_head": 4}
    normed = Attention(12, qk_norm="layer_norm", **options)
    unscaled = Attention(12, scale_qk=False, norm_num_groups=3, residual_connection=True, **options)
    ours = replaced(nn.Sequential(normed, unscaled))
    ours[0].set_processor(processors.AttnProcessor2_0())
    ours[1].set_processor(processors.AttnProcessor())
    for place, processor in ((0, processors.AttnProcessor()), (1, processors.AttnProcessor2_0())):
        with pytest.raises(ValueError, match="may compute something else than the attention of"):
            ours[place].set_processor(processor)


def test_what_stays_is_said():
    theirs = unet2d(mid_block_scale_factor=2.0)
    with pytest.warns(UserWarning, match="stays as it is") as caught:
        ours = cvattn.replace_attention(theirs)
    assert len(caught) == 1
    assert str(caught[0].message) == (
        "attention that stays as it is: mid_block.attentions.0 (the attention has "
        "rescale_output_factor=2.0, which cvattn's attention has not)"
    )
    assert type(ours.mid_block.attentions[0]) is Attention
    assert type(ours.down_blocks[1].attentions[0].attention) is SelfAttention2d
    with pytest.warns(UserWarning, match=r"not known: .*attn2 \(CrossAttentionBlock\)"):
        ours = cvattn.replace_attention(monai_unet(cross=True))
    assert isinstance(ours.middle_block.attention.transformer_blocks[0].attn1.attention, nn.Module)


REASONS = {
    "subclass": (lambda: Renamed(12, heads=3, dim_head=4), "got a Renamed; expected diffusers'"),
    "hook": (lambda: hooked(Attention(12, heads=3, dim_head=4)), "to_q has forward hooks"),
    "MONAI's option": (lambda: SABlock(12, 3, save_attn=True), "the block has save_attn=True"),
    "MONAI's inside": (
        lambda: SpatialAttentionBlock(2, 12, 4, 3, include_fc=False),
        "the block has include_fc=False",
    ),
    "lora": (lambda: with_lora(Attention(12, heads=3, dim_head=4)), "to_q is a peft.*merge_and_un"),
}


class Renamed(Attention):
    pass


def hooked(block):
    block.to_q.register_forward_hook(lambda *_: None)
    return block


def with_lora(block):
    peft = pytest.importorskip("peft")
    return peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["to_q"]), block)


@pytest.mark.parametrize(("make", "reason"), REASONS.values(), ids=REASONS.keys())
def test_refused_by_name_and_nothing_changes(make, reason):
    theirs = nn.ModuleDict({"first": SABlock(12, 3), "block": make()})
    parts = list(theirs.modules())
    with pytest.raises(ValueError, match=f"^block cannot be replaced: .*{reason}"):
        cvattn.replace_attention(theirs, layers=["first", "block"])
    assert list(theirs.modules()) == parts
    with pytest.warns(UserWarning, match=rf"stays as it is: block \(.*{reason}"):
        cvattn.replace_attention(theirs)
    assert type(theirs["first"].attention) is MultiHeadAttention


def test_the_block_itself_is_put_where_the_call_is_the_same():
    theirs = nn.Sequential(fill(SpatialAttentionBlock(3, 12, 4, 3))).train()
    ours = replaced(theirs)
    assert type(ours[0]) is SelfAttention3d
    assert ours[0].training
    old = theirs[0]
    cvattn.replace_attention(theirs)
    assert type(old.attn) is SABlock, "what was taken out is as it was"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="has no attention to replace"):
            cvattn.replace_attention(ours)

"""from_diffusers and to_diffusers: exact both ways with the real layer, honest about the rest."""

import pytest
import torch
from oracles import assert_accurate, assert_near, fill, outcome
from torch import nn

from cvattn import CrossAttention2d, MultiHeadAttention, SelfAttention1d, SelfAttention2d
from cvattn.weights import from_diffusers, to_diffusers

pytest.importorskip("diffusers", reason="pip install -e '.[peers]'")
processors = pytest.importorskip("diffusers.models.attention_processor")
Attention = processors.Attention

C, CONTEXT = 12, 7
MAP = {"norm_num_groups": 3, "residual_connection": True, "eps": 1e-3}
FORMS = {
    "U-Net": MAP | {"heads": 3, "dim_head": 4, "bias": True},
    "one head": MAP | {"heads": 1, "dim_head": C, "bias": True, "upcast_softmax": True},
    "no biases": MAP | {"heads": 2, "dim_head": 6, "out_bias": False},
    "narrow": MAP | {"heads": 2, "dim_head": 5, "bias": True},
    "unscaled": MAP | {"heads": 3, "dim_head": 4, "bias": True, "scale_qk": False},
    "cross on a map": MAP | {"heads": 3, "dim_head": 4, "cross_attention_dim": CONTEXT},
    "tokens": {"heads": 3, "dim_head": 4},
    "tokens, biases": {"heads": 2, "dim_head": 6, "bias": True, "out_bias": False},
    "tokens, cross": {"heads": 3, "dim_head": 4, "cross_attention_dim": CONTEXT},
    "tokens, normed": {"heads": 3, "dim_head": 4, "qk_norm": "layer_norm", "eps": 1e-3},
}
every = pytest.mark.parametrize("options", FORMS.values(), ids=FORMS.keys())


def attention(options, processor=None, channels=C):
    return fill(Attention(channels, processor=processor, **options)).eval()


def inputs_of(options):
    x = torch.randn(2, C, 5, 3) if "norm_num_groups" in options else torch.randn(2, 7, C)
    return [x, torch.randn(2, 11, CONTEXT)] if "cross_attention_dim" in options else [x]


@every
@pytest.mark.usefixtures("float64")
def test_same_outputs_and_gradients(options):
    theirs = attention(options)
    ours = from_diffusers(theirs)
    kind = MultiHeadAttention
    if "norm_num_groups" in options:
        kind = CrossAttention2d if "cross_attention_dim" in options else SelfAttention2d
    assert type(ours) is kind
    assert not ours.training
    inputs = inputs_of(options)
    *want, wanted = outcome(theirs, *inputs)
    *got, found = outcome(ours, *inputs)
    for each, other in zip(got, want, strict=True):
        assert_near(each, other)
    assert (want[0] - inputs[0]).abs().max() > 0.1
    assert len(found) == len(wanted), "biases that the original lacks are absent"
    for theirs_name, ours_name in NAMES.items():
        for part in ("weight", "bias"):
            if f"{theirs_name}.{part}" in wanted:
                gradient = found[_first(found, [f"{name}.{part}" for name in ours_name])]
                # That of a key's bias is 0 but for rounding.
                size = wanted[f"{theirs_name}.weight"].abs().max()
                apart = gradient.flatten() - wanted[f"{theirs_name}.{part}"].flatten()
                assert apart.abs().max() <= 1e-10 * size, theirs_name


NAMES = {
    "to_q": ("query", "q_proj"),
    "to_k": ("key", "k_proj"),
    "to_v": ("value", "v_proj"),
    "to_out.0": ("proj", "out_proj"),
    "group_norm": ("norm",),
    "norm_q": ("q_norm",),
    "norm_k": ("k_norm",),
}


def _first(mapping, names):
    return next(name for name in names if name in mapping)


@every
def test_there_and_back(options):
    theirs = attention(options)
    theirs.to_v.weight.requires_grad_(False)
    ours = from_diffusers(theirs)
    back = to_diffusers(ours)
    first, second = theirs.state_dict(), back.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
        assert tensor.data_ptr() != second[name].data_ptr()
    assert [n for n, p in back.named_parameters() if not p.requires_grad] == ["to_v.weight"]
    inputs = inputs_of(options)
    with torch.no_grad():
        assert torch.equal(back(*inputs), theirs(*inputs))
    again = from_diffusers(back.train())
    assert again.training
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert [p.requires_grad for p in again.parameters()] == [
        p.requires_grad for p in ours.parameters()
    ]


def test_rms_norm_within_its_own_rounding():
    """Theirs makes its sums in float32 in every dtype."""
    theirs = attention({"heads": 3, "dim_head": 4, "qk_norm": "rms_norm", "eps": 1e-3})
    ours = from_diffusers(theirs)
    assert_accurate(ours(x := torch.randn(2, 7, C)), lambda net, x: net(x), theirs, x)
    back = to_diffusers(ours)
    with torch.no_grad():
        assert torch.equal(back(x), theirs(x))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "processor", [processors.AttnProcessor, lambda: processors.SlicedAttnProcessor(2)]
)
def test_other_processors_of_the_same(processor):
    for options in (FORMS["U-Net"], FORMS["tokens, cross"]):
        theirs = attention(options, processor())
        inputs = inputs_of(options)
        assert_near(from_diffusers(theirs)(*inputs), theirs(*inputs))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("form", ["U-Net", "no biases", "tokens, cross", "tokens, biases"])
def test_fused_projections_are_read(form):
    theirs = attention(FORMS[form])
    theirs.fuse_projections()
    theirs.set_processor(processors.FusedAttnProcessor2_0())
    packed = theirs.to_kv if "cross_attention_dim" in FORMS[form] else theirs.to_qkv
    fill(packed)  # as if trained since: the old ones are not used any more
    inputs = inputs_of(FORMS[form])
    ours = from_diffusers(theirs)
    assert_near(ours(*inputs), theirs(*inputs))
    packed.weight.requires_grad_(False)
    frozen = [n for n, p in from_diffusers(theirs).named_parameters() if not p.requires_grad]
    assert len(frozen) == (2 if packed is getattr(theirs, "to_kv", None) else 3)


def test_dtype_follows_and_nothing_is_drawn():
    theirs = attention(FORMS["U-Net"]).to(torch.bfloat16)
    before = torch.get_rng_state()
    ours = from_diffusers(theirs)
    assert torch.equal(torch.get_rng_state(), before)
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    assert to_diffusers(ours).to_q.weight.dtype == torch.bfloat16


def changed(options, **changes):
    module = attention(options)
    for name, value in changes.items():
        setattr(module, name, value)
    return module


def hooked(options):
    module = attention(options)
    module.to_q.register_forward_hook(lambda *_: None)
    return module


UNET, TOKENS = FORMS["U-Net"], FORMS["tokens"]
REFUSED = {
    "spatial norm": (
        lambda: attention(UNET | {"norm_num_groups": 8, "spatial_norm_dim": 5}, channels=32),
        "spatial_norm_dim",
    ),
    "added": (
        lambda: attention(TOKENS | {"added_kv_proj_dim": 9}, processors.AttnProcessor2_0()),
        "added_kv_proj_dim",
    ),
    "only cross": (
        lambda: attention(
            TOKENS | {"added_kv_proj_dim": 9, "only_cross_attention": True},
            processors.AttnProcessor2_0(),
        ),
        "only_cross_attention=True",
    ),
    "cross norm": (
        lambda: attention(FORMS["tokens, cross"] | {"cross_attention_norm": "layer_norm"}),
        "cross_attention_norm",
    ),
    "pre only": (lambda: attention(TOKENS | {"pre_only": True}), "pre_only=True"),
    "context": (lambda: attention(TOKENS | {"context_pre_only": True}), "context_pre_only"),
    "causal": (lambda: attention(TOKENS | {"is_causal": True}), "is_causal=True"),
    "rescaled": (
        lambda: attention(UNET | {"rescale_output_factor": 2.0}),
        r"rescale_output_factor=2\.0",
    ),
    "no residual": (
        lambda: attention(UNET | {"residual_connection": False}),
        "norm_num_groups without residual_connection",
    ),
    "no norm": (
        lambda: attention(UNET | {"norm_num_groups": None}),
        "residual_connection without norm_num_groups",
    ),
    "dropout": (lambda: attention(UNET | {"dropout": 0.25}), r"dropout=0\.25, of what the proj"),
    "other width": (
        lambda: attention(TOKENS | {"dim_head": 5}),
        r"heads \* dim_head=15 unlike query_dim=12",
    ),
    "out_dim": (lambda: attention(TOKENS | {"out_dim": 8}), "out_dim=8"),
    "few keys": (lambda: attention(TOKENS | {"kv_heads": 1}), "kv_heads"),
    "unscaled tokens": (lambda: attention(TOKENS | {"scale_qk": False}), "scale_qk=False"),
    "norm left out": (
        lambda: attention(FORMS["tokens, normed"], processors.AttnProcessor()),
        "qk_norm with a processor that leaves it out",
    ),
    "norms on a map": (lambda: attention(UNET | {"qk_norm": "layer_norm"}), "qk_norm, which"),
    "norm without weights": (
        lambda: attention(TOKENS | {"qk_norm": "layer_norm", "elementwise_affine": False}),
        "qk_norm=LayerNorm, LayerNorm; expected",
    ),
    "norm of all heads": (
        lambda: attention(TOKENS | {"qk_norm": "rms_norm_across_heads", "kv_heads": 3}),
        "qk_norm=RMSNorm, RMSNorm",
    ),
    "unit norm": (lambda: attention(TOKENS | {"qk_norm": "l2"}), "qk_norm=LpNorm"),
    "processor": (
        lambda: attention(TOKENS, processors.JointAttnProcessor2_0()),
        "processor is a JointAttnProcessor2_0.*expected one of AttnProcessor, Sliced",
    ),
    "fused by name alone": (
        lambda: attention(TOKENS, processors.FusedAttnProcessor2_0()),
        "there is no to_qkv: call fuse_projections",
    ),
    "hook": (lambda: hooked(UNET), "to_q has forward hooks"),
    "adapter": (
        lambda: changed(UNET, to_k=nn.Sequential(nn.Linear(C, C))),
        "to_k is a torch.nn.modules.container.Sequential; expected Linear",
    ),
    "some biases": (
        lambda: changed(UNET, to_k=nn.Linear(C, C, bias=False)),
        "a bias in some of to_q, to_k, to_v",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        from_diffusers(make())


class Renamed(Attention):
    pass


def test_other_types():
    with pytest.raises(TypeError, match="got a Renamed; expected diffusers' Attention"):
        from_diffusers(Renamed(C, heads=2, dim_head=6))
    with pytest.raises(TypeError, match="got a SelfAttention1d; expected SelfAttention2d, Cross"):
        to_diffusers(SelfAttention1d(C))


def without_key_bias():
    block = SelfAttention2d.unet(C, groups=3)
    block.key.register_parameter("bias", None)
    return block


HAS_NOT = {
    "gamma": (lambda: SelfAttention2d(C, norm_groups=3), "gamma"),
    "norm": (lambda: SelfAttention2d.non_local(C), "no norm, a batch norm behind the projection"),
    "pooled": (lambda: SelfAttention2d.unet(C, groups=3, kv_pool=2), "kv_pool"),
    "bias": (lambda: SelfAttention2d.unet(C, groups=3, grid=(3, 5)), "a relative bias"),
    "dropout": (lambda: SelfAttention2d.unet(C, groups=3, dropout=0.1), "dropout of weights"),
    "scale": (lambda: CrossAttention2d.unet(C, groups=3, scale=0.3), r"scale=0\.3"),
    "widths": (lambda: SelfAttention2d.unet(C, groups=3, qk_channels=6), "other widths of q and v"),
    "some biases": (without_key_bias, "a bias in some of"),
    "tokens": (lambda: MultiHeadAttention(C, 2, add_zero_attn=True), "add_zero_attn"),
    "two contexts": (lambda: MultiHeadAttention(C, 2, kdim=5), "kdim=5 unlike vdim=12"),
    "qv": (lambda: MultiHeadAttention(C, 2, qkv_bias="qv"), "a bias in some of"),
}


@pytest.mark.parametrize(("make", "message"), HAS_NOT.values(), ids=HAS_NOT.keys())
def test_what_diffusers_has_not(make, message):
    with pytest.raises(ValueError, match=message + ".*which diffusers' Attention has not"):
        to_diffusers(make())

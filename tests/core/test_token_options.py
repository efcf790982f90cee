"""RMSNorm, SwiGLU and other activations, checkpointing, devices and dtypes, chosen layers."""

import copy

import pytest
import torch
from oracles import assert_near, fill, outcome
from timm.layers import QuickGELU, RmsNorm, SwiGLU, SwiGLUPacked
from torch import nn

from cvattn.core import (
    AxialRotary,
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderLayer,
    FeedForward,
    MultiHeadAttention,
    RelativeGridBias,
)
from cvattn.weights import to_torch

WIDTH, HEADS, FFN = 12, 3, 20
double = pytest.mark.usefixtures("float64")
OPTIONS = {"norm": "rms", "qk_norm": "layer", "activation": "swiglu", "ffn_norm": True}


@double
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_swiglu_equals_timms_in_both_forms(packed, normed):
    norm = nn.LayerNorm if normed else None
    kind, width = (SwiGLUPacked, 2 * FFN) if packed else (SwiGLU, FFN)
    theirs = fill(kind(WIDTH, width, norm_layer=norm))
    ours = FeedForward(WIDTH, FFN, activation="swiglu", norm="layer" if normed else None)
    state, x = theirs.state_dict(), torch.randn(2, 5, WIDTH)

    def renamed(state):
        if packed:
            for part in ("weight", "bias"):
                gate, value = state.pop(f"fc1.{part}").chunk(2)
                state |= {f"fc1_g.{part}": gate, f"fc1_x.{part}": value}
        return {k.replace("fc1_g", "gate").replace("fc1_x", "fc1"): v for k, v in state.items()}

    ours.load_state_dict(renamed(dict(state)))
    got, want = outcome(ours, x), outcome(theirs, x)
    assert_near(got[0], want[0])
    assert_near(got[1], want[1])
    wanted = renamed(dict(want[2]))
    assert wanted.keys() == got[2].keys()
    for name, slope in got[2].items():
        assert_near(slope, wanted[name], name)


@double
@pytest.mark.parametrize(
    ("name", "theirs"), [("quick_gelu", QuickGELU()), ("gelu_tanh", nn.GELU(approximate="tanh"))]
)
def test_activations(name, theirs):
    ours, x = fill(FeedForward(WIDTH, FFN, activation=name)), torch.randn(2, 5, WIDTH)
    assert_near(ours(x), ours.fc2(theirs(ours.fc1(x))))
    assert (ours(x) - ours.fc2(nn.functional.gelu(ours.fc1(x)))).abs().max() > 1e-6
    with pytest.raises(ValueError, match=r"activation='glu'; expected one of \['gelu', "):
        FeedForward(WIDTH, FFN, activation="glu")


@double
@pytest.mark.parametrize("norm_first", [True, False])
def test_rms_norms_are_timms_and_in_every_place(norm_first):
    module = fill(Encoder(WIDTH, HEADS, FFN, 2, norm="rms", norm_eps=0.3, norm_first=norm_first))
    norms = {name: each for name, each in module.named_modules() if "norm" in name}
    assert len(norms) == 5
    for name, norm in norms.items():
        if name == "norm" and not norm_first:
            assert isinstance(norm, nn.Identity)
            continue
        theirs = RmsNorm(WIDTH, eps=0.3)
        theirs.load_state_dict(norm.state_dict())
        x = torch.randn(2, 5, WIDTH)
        assert_near(norm(x), theirs(x), name)
    decoder = Decoder(WIDTH, HEADS, FFN, 1, norm="rms", qk_norm="rms")
    kinds = [type(each).__name__ for name, each in decoder.named_modules() if "norm" in name]
    assert kinds == ["RMSNorm"] * 8
    with pytest.raises(ValueError, match=r"norm='batch'; expected one of"):
        EncoderLayer(WIDTH, HEADS, FFN, norm="batch")


@double
@pytest.mark.parametrize("final_norm", [True, False])
def test_what_comes_out_of_chosen_layers(final_norm):
    module = fill(Encoder(WIDTH, HEADS, FFN, 4, final_norm=final_norm)).eval()
    x, rotary = torch.randn(2, 5, WIDTH), AxialRotary(4, (1, 5))((1, 5))
    bias, mask = torch.randn(5, 5), torch.rand(5, 5) < 0.8
    terms = {"rotary": rotary, "attn_bias": bias, "attn_mask": mask}
    each = [x]
    for layer in module.layers:
        each.append(layer(each[-1], **terms))
    got = module.layer_outputs(x, [2, 0, -1, 2], norm=False, **terms)
    for found, want in zip(got, (each[3], each[1], each[4], each[3]), strict=True):
        assert_near(found, want)
    normed = module.layer_outputs(x, [-2, -1], **terms)
    assert_near(normed[0], module.norm(each[3]))
    assert_near(normed[1], module(x, **terms))
    ran = []
    module.layers[2].register_forward_hook(lambda *_: ran.append(2))
    module.layer_outputs(x, [1, 0])
    assert ran == []
    assert module.layer_outputs(x, []) == []
    with pytest.raises(ValueError, match=r"layers=\[0, 4\]: there are 4, -4 to 3"):
        module.layer_outputs(x, [0, 4])


@double
def test_checkpointing_gives_the_same_numbers_with_dropout():
    plain = fill(Encoder(WIDTH, HEADS, FFN, 3, dropout=0.3, drop_path=0.3, layer_scale=0.7))
    saving = copy.deepcopy(plain)
    saving.gradient_checkpointing = True
    ran = {"plain": 0, "saving": 0}
    for name, module in (("plain", plain), ("saving", saving)):
        module.layers[1].ffn.register_forward_hook(
            lambda *_, name=name: ran.update({name: ran[name] + 1})
        )
    x, terms = torch.randn(4, 5, WIDTH), {"rotary": AxialRotary(4, (1, 5))((1, 5))}
    found = []
    for module in (plain, saving):
        torch.manual_seed(3)
        found.append(outcome(module, x, **terms))
    assert ran == {"plain": 1, "saving": 2}
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    for name, slope in found[0][2].items():
        assert torch.equal(slope, found[1][2][name]), name
    with torch.no_grad():
        saving(x)
    saving.eval()(x).sum().backward()  # with gradients, yet not in training
    assert ran["saving"] == 4


def test_checkpointing_saves_memory_and_compiles():
    def kept(module, x):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel()) or t, lambda t: t
        ):
            module(x)
        return sum(sizes)

    plain = Encoder(WIDTH, HEADS, FFN, 4)
    saving = Encoder(WIDTH, HEADS, FFN, 4, gradient_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(2, 31, WIDTH, requires_grad=True)
    assert kept(saving, x) < kept(plain, x) / 4
    torch._dynamo.reset()
    compiled = torch.compile(saving, fullgraph=True, backend="aot_eager")
    want = torch.autograd.grad(plain(x).square().sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(compiled(x).square().sum(), x)[0], want)


@pytest.mark.parametrize(
    "make",
    [
        lambda **made: MultiHeadAttention(
            WIDTH, HEADS, qk_norm="rms", add_bias_kv=True, qkv_bias="qv", **made
        ),
        lambda **made: FeedForward(WIDTH, FFN, activation="swiglu", norm="layer", **made),
        lambda **made: EncoderLayer(WIDTH, HEADS, FFN, layer_scale=0.1, **OPTIONS, **made),
        lambda **made: Encoder(WIDTH, HEADS, FFN, 2, layer_scale=0.1, **OPTIONS, **made),
        lambda **made: DecoderLayer(WIDTH, HEADS, FFN, norm="rms", qk_norm="layer", **made),
        lambda **made: Decoder(WIDTH, HEADS, FFN, 2, norm="rms", qk_norm="layer", **made),
        lambda **made: RelativeGridBias(HEADS, (3, 5), **made),
    ],
)
def test_made_on_a_device_in_a_dtype(make):
    torch.manual_seed(1)
    want = make().state_dict()
    meta = make(device="meta", dtype=torch.bfloat16)
    assert {(p.is_meta, p.dtype) for p in meta.state_dict().values()} == {(True, torch.bfloat16)}
    assert {name: p.shape for name, p in meta.state_dict().items()} == {
        name: p.shape for name, p in want.items()
    }
    made = make(device="cpu", dtype=torch.float64)
    assert {p.dtype for p in made.state_dict().values()} == {torch.float64}
    assert all(p.isfinite().all() for p in made.state_dict().values())


def test_keys_and_numbers_of_what_there_was_stay():
    """The options add nothing to a state where they are off; on, only their own."""
    plain = EncoderLayer(WIDTH, HEADS, FFN).state_dict()
    names = {f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")}
    names |= {"norm1", "norm2", "ffn.fc1", "ffn.fc2"}
    assert set(plain) == {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    more = EncoderLayer(WIDTH, HEADS, FFN, **(OPTIONS | {"norm": "layer"})).state_dict()
    own = {"self_attn.q_norm", "self_attn.k_norm", "ffn.gate", "ffn.norm"}
    assert set(more) - set(plain) == {
        f"{name}.{kind}" for name in own for kind in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "rms"}, "norm1 is a .*RMSNorm; expected LayerNorm"),
        ({"activation": "swiglu"}, "SiLU; expected ReLU or GELU"),
        ({"activation": "quick_gelu"}, "QuickGELU; expected ReLU or GELU"),
        ({"activation": "gelu_tanh"}, r"GELU\(approximate='tanh'\); expected"),
        ({"qk_norm": "rms"}, "has qk_norm, which nn.MultiheadAttention has not"),
        ({"qkv_bias": "qv"}, "qkv_bias='qv'"),
        ({"qkv_bias": False}, "qkv_bias differs from bias"),
        ({"ffn_norm": True}, "a gate or a norm"),
    ],
)
def test_what_torch_has_not_is_not_converted(options, message):
    with pytest.raises(ValueError, match=message):
        to_torch(EncoderLayer(WIDTH, HEADS, FFN, **options))

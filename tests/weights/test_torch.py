"""from_torch and to_torch: exact both ways, honest about what does not fit."""

import itertools
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_near, fill
from torch import nn

from cvattn.core import Decoder, DecoderLayer, Encoder, EncoderLayer, MultiHeadAttention
from cvattn.weights import from_torch, to_torch

WIDTH, HEADS, FFN = 10, 2, 13


def assert_same(first, second):
    """Equal state, key for key and bit for bit, in memory of its own, and equal settings."""
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
        assert a[name].dtype == b[name].dtype
        assert a[name].data_ptr() != b[name].data_ptr(), f"{name} is shared, not copied"
    flags = [[p.requires_grad for p in m.parameters()] for m in (first, second)]
    assert flags[0] == flags[1]
    assert [m.training for m in first.modules()] == [m.training for m in second.modules()]
    norms = [[m.eps for m in x.modules() if isinstance(m, nn.LayerNorm)] for x in (first, second)]
    assert norms[0] == norms[1]


@pytest.mark.parametrize(
    ("kdim", "vdim"), [(None, None), (WIDTH, WIDTH), (7, None), (None, 11), (7, 11)]
)
@pytest.mark.parametrize(
    ("bias", "bias_kv", "zero"), list(itertools.product([False, True], repeat=3))
)
def test_attention_round_trip(kdim, vdim, bias, bias_kv, zero):
    theirs = nn.MultiheadAttention(
        WIDTH,
        HEADS,
        dropout=0.25,
        kdim=kdim,
        vdim=vdim,
        bias=bias,
        add_bias_kv=bias_kv,
        add_zero_attn=zero,
        batch_first=True,
    )
    fill(theirs).eval()
    ours = from_torch(theirs)
    assert type(ours) is MultiHeadAttention
    assert (ours.dropout, ours.num_heads, ours.add_zero_attn) == (0.25, HEADS, zero)
    back = to_torch(ours)
    assert_same(theirs, back)
    assert_same(ours, from_torch(back))
    query, key = torch.randn(3, 5, WIDTH), torch.randn(3, 7, kdim or WIDTH)
    value = torch.randn(3, 7, vdim or WIDTH)
    assert torch.equal(theirs(query, key, value)[0], back(query, key, value)[0])
    assert back.dropout == 0.25
    assert back.add_zero_attn == zero


def layers(kind, **options):
    options = {"activation": "gelu", "dropout": 0.25, "layer_norm_eps": 1e-3} | options
    return fill(kind(WIDTH, HEADS, FFN, batch_first=True, **options))


@pytest.mark.parametrize(
    ("kind", "ours_kind"),
    [
        (nn.TransformerEncoderLayer, EncoderLayer),
        (nn.TransformerDecoderLayer, DecoderLayer),
    ],
)
@pytest.mark.parametrize(
    ("norm_first", "activation", "bias"),
    list(itertools.product([True, False], ["relu", "gelu"], [True, False])),
)
def test_layer_round_trip(kind, ours_kind, norm_first, activation, bias):
    theirs = layers(kind, norm_first=norm_first, activation=activation, bias=bias)
    ours = from_torch(theirs)
    assert type(ours) is ours_kind
    assert ours.norm_first is norm_first
    rates = {m.p for m in ours.modules() if isinstance(m, nn.Dropout)}
    assert rates | {ours.self_attn.dropout} == {0.25}
    back = to_torch(ours)
    assert_same(theirs, back)
    assert_same(ours, from_torch(back))
    assert back.activation is theirs.activation
    assert back.self_attn.batch_first
    theirs.eval()
    back.eval()
    inputs = [torch.randn(3, 5, WIDTH), torch.randn(3, 7, WIDTH)]
    inputs = inputs[: 1 if kind is nn.TransformerEncoderLayer else 2]
    assert torch.equal(theirs(*inputs), back(*inputs))


def stacks(kind, norm):
    if kind is nn.TransformerEncoder:
        layer = layers(nn.TransformerEncoderLayer)
        return fill(nn.TransformerEncoder(layer, 3, norm=norm, enable_nested_tensor=False))
    return fill(nn.TransformerDecoder(layers(nn.TransformerDecoderLayer), 3, norm=norm))


@pytest.mark.parametrize(
    ("kind", "ours_kind"), [(nn.TransformerEncoder, Encoder), (nn.TransformerDecoder, Decoder)]
)
@pytest.mark.parametrize("norm", ["none", "plain", "without bias", "without weights"])
def test_stack_round_trip(kind, ours_kind, norm):
    norm = {
        "none": None,
        "plain": nn.LayerNorm(WIDTH, eps=1e-2),
        "without bias": nn.LayerNorm(WIDTH, bias=False),
        "without weights": nn.LayerNorm(WIDTH, elementwise_affine=False),
    }[norm]
    theirs = stacks(kind, norm)
    ours = from_torch(theirs)
    assert type(ours) is ours_kind
    assert isinstance(ours.norm, nn.Identity if norm is None else nn.LayerNorm)
    assert len(ours.layers) == 3
    back = to_torch(ours)
    assert type(back) is kind
    assert back.num_layers == 3
    assert_same(theirs, back)
    assert_same(ours, from_torch(back))
    inputs = [torch.randn(3, 5, WIDTH), torch.randn(3, 7, WIDTH)]
    inputs = inputs[: 1 if kind is nn.TransformerEncoder else 2]
    theirs.eval()
    back.eval()
    assert torch.equal(theirs(*inputs), back(*inputs))


@pytest.mark.parametrize("build", [Encoder, Decoder])
@pytest.mark.parametrize("norm_first", [True, False])
def test_ours_to_torch_and_back(build, norm_first):
    ours = fill(build(WIDTH, HEADS, FFN, 2, norm_first=norm_first, dropout=0.1)).eval()
    again = from_torch(to_torch(ours))
    assert_same(ours, again)
    inputs = [torch.randn(3, 5, WIDTH), torch.randn(3, 7, WIDTH)]
    inputs = inputs[: 1 if build is Encoder else 2]
    assert torch.equal(ours(*inputs), again(*inputs))


def test_dtype_mode_and_frozen_weights_follow():
    theirs = layers(nn.TransformerEncoderLayer).double().eval()
    theirs.linear1.weight.requires_grad_(False)
    theirs.self_attn.in_proj_weight.requires_grad_(False)
    ours = from_torch(theirs)
    assert {p.dtype for p in ours.parameters()} == {torch.float64}
    assert not ours.training
    assert not ours.self_attn.training
    frozen = {name for name, p in ours.named_parameters() if not p.requires_grad}
    assert frozen == {"ffn.fc1.weight"} | {f"self_attn.{n}_proj.weight" for n in "qkv"}
    assert_same(theirs, to_torch(ours))
    with torch.no_grad():
        assert from_torch(theirs).ffn.fc2.weight.requires_grad


def test_no_random_number_is_drawn():
    theirs = stacks(nn.TransformerEncoder, None)
    before = torch.get_rng_state()
    to_torch(from_torch(theirs))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("float64")
def test_batch_first_does_not_matter():
    theirs = fill(nn.MultiheadAttention(WIDTH, HEADS))
    x = torch.randn(3, 5, WIDTH)
    expected = theirs(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1)
    assert_near(from_torch(theirs)(x), expected)


class Renamed(nn.MultiheadAttention):
    pass


def changed(layer, **parts):
    for name, part in parts.items():
        setattr(layer, name, part)
    return layer


def dropped(name):
    layer = layers(nn.TransformerEncoderLayer)
    getattr(layer, name).p = 0.5
    return layer


SUPPORTED = "MultiheadAttention, TransformerEncoderLayer, TransformerEncoder, .*Decoder"
REFUSED = {
    "another type": (nn.Linear(3, 5), TypeError, f"from_torch.. got a Linear; .*{SUPPORTED}"),
    "ours": (MultiHeadAttention(4, 2), TypeError, "got a MultiHeadAttention"),
    "subclass": (Renamed(4, 2), TypeError, "got a Renamed"),
    "activation": (
        layers(nn.TransformerEncoderLayer, activation=F.silu),
        ValueError,
        "activation is .*silu.*; expected relu or gelu",
    ),
    "tanh gelu": (
        layers(nn.TransformerDecoderLayer, activation=nn.GELU(approximate="tanh")),
        ValueError,
        "tanh.*expected relu or gelu .exact.",
    ),
    "dropouts": (dropped("dropout1"), ValueError, "dropouts of a layer differ.*'dropout1': 0.5"),
    "norm": (
        changed(layers(nn.TransformerEncoderLayer), norm2=nn.RMSNorm(WIDTH)),
        ValueError,
        "norm2 is a .*RMSNorm; expected LayerNorm",
    ),
    "final norm": (
        stacks(nn.TransformerEncoder, nn.RMSNorm(WIDTH)),
        ValueError,
        "final norm is a RMSNorm; expected LayerNorm or none",
    ),
}


@pytest.mark.parametrize(("module", "kind", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_from_torch_refuses(module, kind, message):
    with pytest.raises(kind, match=message):
        from_torch(module)


@pytest.mark.parametrize(
    ("module", "kind", "message"),
    [
        (
            nn.Linear(3, 5),
            TypeError,
            "to_torch.. got a Linear; expected one of: MultiHead",
        ),
        (EncoderLayer(4, 2, 5, layer_scale=0.1), ValueError, "LayerScale, which nn.Transformer"),
        (Encoder(4, 2, 5, 3, drop_path=0.1), ValueError, "DropPath, which nn.TransformerEnc"),
    ],
)
def test_to_torch_refuses(module, kind, message):
    with pytest.raises(kind, match=message):
        to_torch(module)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("activation", [nn.GELU(), nn.ReLU(), F.gelu, F.relu])
def test_activations_as_modules_and_functions(activation):
    theirs = layers(nn.TransformerEncoderLayer, activation=activation).eval()
    x = torch.randn(3, 5, WIDTH)
    assert_near(from_torch(theirs)(x), theirs(x))


def test_import_stays_light():
    code = "import sys, cvattn.weights; print({'timm', 'torchvision'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

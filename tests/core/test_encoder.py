"""Encoder layers and stacks against torch's, and what a stack must be by itself."""

import copy
import itertools

import pytest
import torch
from oracles import assert_accurate, assert_hides, assert_near, call, fill, outcome, scalar
from torch import nn

from cvattn.core import DropPath, Encoder, EncoderLayer, LayerScale, masks
from cvattn.weights import from_torch

BATCH, LENGTH, WIDTH, HEADS, FFN = 3, 7, 10, 2, 13
OPTIONS = list(itertools.product([True, False], ["relu", "gelu"], [True, False]))


def torch_layer(norm_first, activation, bias, dtype=torch.float64, dropout=0.0):
    return fill(
        nn.TransformerEncoderLayer(
            WIDTH,
            HEADS,
            FFN,
            dropout=dropout,
            activation=activation,
            norm_first=norm_first,
            bias=bias,
            layer_norm_eps=1e-3,
            batch_first=True,
            dtype=dtype,
        )
    )


def mask_pairs():
    """(torch's arguments, ours): True = ignore on one side, may attend on the other."""
    whole = torch.rand(LENGTH, LENGTH) < 0.4
    whole[:, 0] = False
    padded = torch.arange(LENGTH) >= torch.tensor([LENGTH, 4, 2])[:, None]
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    for mask in (whole, padded, causal):
        assert_hides(mask)
    return [
        ({}, {}),
        ({"src_mask": whole}, {"attn_mask": ~whole}),
        ({"src_key_padding_mask": padded}, {"attn_mask": ~padded[:, None, None]}),
        ({"src_mask": causal}, {"is_causal": True}),
        (
            {"src_mask": whole, "src_key_padding_mask": padded},
            {"attn_mask": ~(whole | padded[:, None])[:, None]},
        ),
    ]


def by_torch(theirs, x, **terms):
    """:func:`outcome`, gradients under our names: put where the weights were, and copied over."""
    output, slope, found = outcome(theirs, x, **terms)
    gradients = copy.deepcopy(theirs)
    gradients.load_state_dict(found)
    return output, slope, dict(from_torch(gradients).named_parameters())


def compare(theirs, dtype, mask_name="src_mask"):
    ours = from_torch(theirs)
    for mode, (their_terms, our_terms) in itertools.product([True, False], mask_pairs()):
        what = f"training {mode}, {sorted(their_terms)}"
        their_terms = {mask_name if k == "src_mask" else k: v for k, v in their_terms.items()}
        theirs.train(mode)
        ours.train(mode)
        x = torch.randn(BATCH, LENGTH, WIDTH, dtype=dtype)
        found = outcome(ours, x, **our_terms)
        assert_accurate(found, by_torch, theirs, x, what=what, **their_terms)
        with torch.no_grad():
            fast = ours(x, **our_terms)
            assert_accurate(fast, call, theirs, x, what=what, **their_terms)


@pytest.mark.parametrize(("norm_first", "activation", "bias"), OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_layer_equals_torch(norm_first, activation, bias, dtype):
    compare(torch_layer(norm_first, activation, bias, dtype), dtype)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("final", [True, False])
def test_stack_equals_torch(norm_first, final):
    """Also the two odd ones: pre-norm without a final norm, post-norm with one."""
    norm = fill(nn.LayerNorm(WIDTH, eps=1e-2, dtype=torch.float64)) if final else None
    layer = torch_layer(norm_first, "gelu", True)
    theirs = nn.TransformerEncoder(layer, 3, norm=norm, enable_nested_tensor=False)
    fill(theirs)  # its layers are copies of one
    compare(theirs, torch.float64, mask_name="mask")


def test_under_autocast_the_sum_stays_in_the_lower_precision():
    layer = EncoderLayer(WIDTH, HEADS, FFN, layer_scale=0.3, drop_path=0.4, dropout=0.2).train()
    x = torch.randn(2, 5, WIDTH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.train()(x.bfloat16()).dtype == torch.bfloat16
        output = layer.eval()(x.bfloat16())
    assert_accurate(output, call, copy.deepcopy(layer).bfloat16(), x.bfloat16())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("norm_first", [True, False])
def test_layer_scale_and_drop_path_stand_before_the_sum(norm_first):
    torch.manual_seed(7)
    layer = EncoderLayer(WIDTH, HEADS, FFN, norm_first=norm_first, layer_scale=0.3, drop_path=0.4)
    x = torch.randn(BATCH, LENGTH, WIDTH)

    def branches(x, factor):
        if norm_first:
            x = x + 0.3 * factor * layer.self_attn(layer.norm1(x))
            return x + 0.3 * factor * layer.ffn(layer.norm2(x))
        x = layer.norm1(x + 0.3 * factor * layer.self_attn(x))
        return layer.norm2(x + 0.3 * factor * layer.ffn(x))

    assert_near(layer.eval()(x), branches(x, 1.0))
    layer.train()
    many = layer(x[:1].expand(101, -1, -1))
    both_kept, none_kept = branches(x[:1], 1 / 0.6), branches(x[:1], 0.0)
    for wanted, share in ((both_kept, 0.36), (none_kept, 0.16)):
        hit = ((many - wanted).abs().flatten(1).amax(1) < 1e-5).float().mean().item()
        assert abs(hit - share) < 0.2


def test_drop_path_rises_to_the_last_layer():
    encoder = Encoder(WIDTH, HEADS, FFN, 5, drop_path=0.2)
    rates = [
        [part.probability for part in layer.branch1 if isinstance(part, DropPath)]
        for layer in encoder.layers
    ]
    assert rates[0] == []
    assert [r[0] for r in rates[1:]] == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert isinstance(
        Encoder(WIDTH, HEADS, FFN, 1, layer_scale=0.1).layers[0].branch2[0], LayerScale
    )


def test_layers_are_not_clones():
    """No weight starts equal in two layers (torch's stacks deep-copy one layer)."""
    encoder = Encoder(WIDTH, HEADS, FFN, 3)
    for first, second in itertools.combinations(encoder.layers, 2):
        for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
            assert a is not b
            if name.endswith("weight") and "norm" not in name:
                assert not torch.equal(a, b), name


def test_dropout_is_for_training_alone():
    encoder = Encoder(WIDTH, HEADS, FFN, 2, dropout=0.3)
    plain = Encoder(WIDTH, HEADS, FFN, 2)
    plain.load_state_dict(encoder.state_dict())
    x = torch.randn(BATCH, LENGTH, WIDTH)
    assert torch.equal(encoder.eval()(x), plain(x))
    encoder.train()
    assert not torch.equal(encoder(x), encoder(x))


@pytest.mark.usefixtures("float64")
def test_padding_does_not_leak():
    """A sample gives the same alone, unpadded, as in a padded batch; a length of 0 stays finite."""
    encoder = fill(Encoder(WIDTH, HEADS, FFN, 2))
    x = torch.randn(BATCH, LENGTH, WIDTH)
    lengths = torch.tensor([7, 4, 0])
    output = encoder(x, attn_mask=masks.length_mask(lengths, LENGTH))
    assert torch.isfinite(output).all()
    for b, length in enumerate(lengths[:2].tolist()):
        assert_near(output[b, :length], encoder(x[b : b + 1, :length])[0])
    scalar(output).backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())


def test_bias_reaches_every_layer():
    encoder = fill(Encoder(WIDTH, HEADS, FFN, 2).double())
    x = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64)
    mask = assert_hides(torch.rand(BATCH, 1, LENGTH, LENGTH) < 0.6)
    mask[..., 0] = True
    bias = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, float("-inf"))
    assert_near(encoder(x, attn_bias=bias), encoder(x, attn_mask=mask))
    assert (encoder(x) - encoder(x, attn_mask=mask)).abs().max() > 1e-3


@pytest.mark.parametrize("norm_first", [True, False])
def test_final_norm(norm_first):
    encoder = Encoder(WIDTH, HEADS, FFN, 2, norm_first=norm_first, norm_eps=1e-3, bias=False)
    assert isinstance(encoder.norm, nn.LayerNorm if norm_first else nn.Identity)
    assert not [name for name, _ in encoder.named_parameters() if name.endswith("bias")]
    norms = [m for m in encoder.modules() if isinstance(m, nn.LayerNorm)]
    assert {m.eps for m in norms} == {1e-3}


def test_trap_17_exported_with_a_dynamic_batch():
    layer = fill(EncoderLayer(WIDTH, HEADS, FFN, layer_scale=0.1, drop_path=0.1)).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(
        layer,
        (torch.randn(3, LENGTH, WIDTH),),
        {"attn_mask": torch.ones(3, 1, 1, LENGTH, dtype=torch.bool)},
        dynamic_shapes={"x": {0: batch}, "attn_mask": {0: batch}},
    ).module()
    for size in (2, 5):
        x, mask = torch.randn(size, LENGTH, WIDTH), masks.length_mask(torch.arange(size), LENGTH)
        assert_accurate(program(x, attn_mask=mask), call, layer, x, attn_mask=mask)


def test_compiled_without_a_graph_break():
    torch._dynamo.reset()
    encoder = fill(Encoder(WIDTH, HEADS, FFN, 2, layer_scale=0.1))
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    x = torch.randn(BATCH, LENGTH, WIDTH)
    assert_accurate(compiled(x, is_causal=True), call, encoder, x, is_causal=True)


@pytest.mark.parametrize("build", [EncoderLayer, lambda *a, **k: Encoder(*a, 2, **k)])
@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((10, 3, 13), {}, "embed_dim=10 is not divisible by num_heads=3; nearest that are: 9, 12"),
        ((10, 2, 13), {"activation": "silu"}, "activation='silu'; expected one of"),
        ((10, 2, 13), {"dropout": 1.5}, "dropout=1.5 is not a probability"),
    ],
)
def test_refused(build, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        build(*arguments, **options)


def test_refused_drop_path():
    with pytest.raises(ValueError, match=r"drop_path=1\.5 is not a probability"):
        EncoderLayer(10, 2, 13, drop_path=1.5)

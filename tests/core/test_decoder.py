"""Decoder layers and stacks against torch's; causality and cross-attention by themselves."""

import copy
import itertools

import pytest
import torch
from oracles import assert_accurate, assert_hides, assert_near, fill, outcome, scalar
from torch import nn

from cvattn.core import Decoder, DecoderLayer, masks
from cvattn.weights import from_torch

BATCH, LENGTH, SIZE, WIDTH, HEADS, FFN = 3, 5, 7, 10, 2, 13
OPTIONS = list(itertools.product([True, False], ["relu", "gelu"], [True, False]))


def torch_layer(norm_first, activation, bias, dtype=torch.float64):
    return fill(
        nn.TransformerDecoderLayer(
            WIDTH,
            HEADS,
            FFN,
            dropout=0.0,
            activation=activation,
            norm_first=norm_first,
            bias=bias,
            layer_norm_eps=1e-3,
            batch_first=True,
            dtype=dtype,
        )
    )


def mask_pairs():
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    padded = torch.arange(LENGTH) >= torch.tensor([LENGTH, 4, 2])[:, None]
    memory_padded = torch.arange(SIZE) >= torch.tensor([3, SIZE, 5])[:, None]
    memory = torch.rand(LENGTH, SIZE) < 0.4
    memory[:, 0] = False
    for mask in (causal, padded, memory_padded, memory):
        assert_hides(mask)
    return [
        ({}, {"is_causal": False}),
        ({"tgt_mask": causal}, {}),
        (
            {
                "tgt_mask": causal,
                "tgt_key_padding_mask": padded,
                "memory_mask": memory,
                "memory_key_padding_mask": memory_padded & (torch.arange(SIZE) > 0),
            },
            {
                "attn_mask": ~padded[:, None, None],
                "memory_mask": masks.combine_masks(~memory, ~memory_padded[:, None, None]),
            },
        ),
    ]


def by_torch(theirs, x, memory, **terms):
    """:func:`outcome`, gradients under our names: put where the weights were, and copied over."""
    *found, own = outcome(theirs, x, memory, **terms)
    gradients = copy.deepcopy(theirs)
    gradients.load_state_dict(own)
    return *found, dict(from_torch(gradients).named_parameters())


def compare(theirs, dtype):
    ours = from_torch(theirs)
    for mode, (their_terms, our_terms) in itertools.product([True, False], mask_pairs()):
        what = f"training {mode}, {sorted(their_terms)}"
        theirs.train(mode)
        ours.train(mode)
        x = torch.randn(BATCH, LENGTH, WIDTH, dtype=dtype)
        memory = torch.randn(BATCH, SIZE, WIDTH, dtype=dtype)
        found = outcome(ours, x, memory, **our_terms)
        assert_accurate(found, by_torch, theirs, x, memory, what=what, **their_terms)


@pytest.mark.parametrize(("norm_first", "activation", "bias"), OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_layer_equals_torch(norm_first, activation, bias, dtype):
    compare(torch_layer(norm_first, activation, bias, dtype), dtype)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("final", [True, False])
def test_stack_equals_torch(norm_first, final):
    norm = nn.LayerNorm(WIDTH, eps=1e-2, dtype=torch.float64) if final else None
    theirs = fill(nn.TransformerDecoder(torch_layer(norm_first, "relu", True), 3, norm=norm))
    compare(theirs, torch.float64)


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_token_sees_no_later_one_and_all_of_the_memory(norm_first):
    decoder = fill(Decoder(WIDTH, HEADS, FFN, 2, norm_first=norm_first).double())
    x = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64)
    memory = torch.randn(BATCH, SIZE, WIDTH, dtype=torch.float64)
    output = decoder(x, memory)
    for j in range(LENGTH):
        moved = x.clone()
        moved[:, j] += torch.randn(WIDTH, dtype=torch.float64)
        changed = (decoder(moved, memory) - output).abs().amax((0, 2)) > 1e-9
        assert changed.tolist() == [i >= j for i in range(LENGTH)]
    for j in range(SIZE):
        moved = memory.clone()
        moved[:, j] += torch.randn(WIDTH, dtype=torch.float64)
        assert ((decoder(x, moved) - output).abs().amax((0, 2)) > 1e-9).all()


@pytest.mark.usefixtures("float64")
def test_padding_does_not_leak():
    """Padded memory and padded targets change nothing; a memory of length 0 stays finite."""
    decoder = fill(Decoder(WIDTH, HEADS, FFN, 2))
    x, memory = torch.randn(BATCH, LENGTH, WIDTH), torch.randn(BATCH, SIZE, WIDTH)
    lengths, memory_lengths = torch.tensor([5, 2, 3]), torch.tensor([4, 7, 0])
    output = decoder(
        x,
        memory,
        attn_mask=masks.length_mask(lengths, LENGTH),
        memory_mask=masks.length_mask(memory_lengths, SIZE),
    )
    assert torch.isfinite(output).all()
    for b in range(2):
        alone = decoder(x[b : b + 1, : lengths[b]], memory[b : b + 1, : memory_lengths[b]])
        assert_near(output[b, : lengths[b]], alone[0])
    scalar(output).backward()
    assert all(torch.isfinite(p.grad).all() for p in decoder.parameters())


def test_layers_and_attentions_are_not_clones():
    decoder = Decoder(WIDTH, HEADS, FFN, 2)
    attentions = [a for layer in decoder.layers for a in (layer.self_attn, layer.cross_attn)]
    for a, b in itertools.combinations(attentions, 2):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            assert not torch.equal(getattr(a, name).weight, getattr(b, name).weight)
    assert not torch.equal(decoder.layers[0].ffn.fc1.weight, decoder.layers[1].ffn.fc1.weight)


def test_dropout_is_for_training_alone():
    decoder = Decoder(WIDTH, HEADS, FFN, 2, dropout=0.3)
    plain = Decoder(WIDTH, HEADS, FFN, 2)
    plain.load_state_dict(decoder.state_dict())
    x, memory = torch.randn(BATCH, LENGTH, WIDTH), torch.randn(BATCH, SIZE, WIDTH)
    assert torch.equal(decoder.eval()(x, memory), plain(x, memory))
    decoder.train()
    assert not torch.equal(decoder(x, memory), decoder(x, memory))


@pytest.mark.parametrize("norm_first", [True, False])
def test_final_norm(norm_first):
    decoder = Decoder(WIDTH, HEADS, FFN, 2, norm_first=norm_first, norm_eps=1e-3, bias=False)
    assert isinstance(decoder.norm, nn.LayerNorm if norm_first else nn.Identity)
    assert {m.eps for m in decoder.modules() if isinstance(m, nn.LayerNorm)} == {1e-3}
    assert not [name for name, _ in decoder.named_parameters() if name.endswith("bias")]


def test_refused():
    with pytest.raises(ValueError, match="embed_dim=10 is not divisible by num_heads=3"):
        DecoderLayer(10, 3, 13)
    layer = DecoderLayer(WIDTH, HEADS, FFN)
    x = torch.randn(BATCH, LENGTH, WIDTH)
    with pytest.raises(ValueError, match=r"key has shape \(3, 7, 9\)"):
        layer(x, torch.randn(BATCH, SIZE, 9))
    with pytest.raises(ValueError, match=r"\(batch, heads\)"):
        layer(x, torch.randn(1, SIZE, WIDTH))
    with pytest.raises(TypeError, match=r"attn_mask is torch\.float32"):
        layer(x, torch.randn(BATCH, SIZE, WIDTH), memory_mask=torch.zeros(LENGTH, SIZE))

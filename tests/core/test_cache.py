"""A decoder that is fed piece by piece, with a cache, gives what it gives for the whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import assert_near, fill
from torch import Tensor

from cvattn.core import Decoder, MultiHeadAttention, masks

WIDTH, HEADS, FFN = 10, 2, 13


def make(norm_first: bool = True) -> Decoder:
    return fill(Decoder(WIDTH, HEADS, FFN, 3, norm_first=norm_first).double()).eval()


@settings(max_examples=15, deadline=None)
@given(
    pieces=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    memory_lengths=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    norm_first=st.booleans(),
    seed=st.integers(0, 99),
)
def test_piece_by_piece_equals_the_whole(pieces, memory_lengths, norm_first, seed):
    torch.manual_seed(seed)
    decoder, batch = make(norm_first), len(memory_lengths)
    x = torch.randn(batch, sum(pieces), WIDTH, dtype=torch.float64)
    memory = torch.randn(batch, 7, WIDTH, dtype=torch.float64)
    mask = masks.length_mask(torch.tensor(memory_lengths), 7)
    want = decoder(x, memory, memory_mask=mask)
    cache, done = decoder.new_cache(), 0
    for piece in pieces:
        assert cache.length == done
        got = decoder(x[:, done : done + piece], memory, memory_mask=mask, cache=cache)
        assert_near(got, want[:, done : done + piece])
        done += piece


def test_rows_go_on_alone_and_more_than_once():
    """After three tokens samples 2, 0 and 2 again go on, each with a token of its own."""
    decoder = make()
    x, memory = (torch.randn(4, n, WIDTH, dtype=torch.float64) for n in (3, 7))
    mask = masks.length_mask(torch.tensor([7, 3, 2, 5]), 7)
    cache, rows = decoder.new_cache(), torch.tensor([2, 0, 2])
    decoder(x, memory, memory_mask=mask, cache=cache)
    cache.select(rows)
    further = torch.randn(3, 1, WIDTH, dtype=torch.float64)
    got = decoder(further, memory[rows], memory_mask=mask[rows], cache=cache)
    whole = torch.cat([x[rows], further], dim=1)
    want = decoder(whole, memory[rows], memory_mask=mask[rows])[:, -1:]
    assert_near(got, want)
    assert (got[0] - got[2]).abs().max() > 1e-3


def test_each_key_is_projected_once():
    decoder = make()
    seen: list[int] = []
    for layer in decoder.layers:
        for attention in (layer.self_attn, layer.cross_attn):
            attention.k_proj.register_forward_hook(lambda _, args, out: seen.append(out.shape[1]))
    memory = torch.randn(2, 7, WIDTH, dtype=torch.float64)
    cache = decoder.new_cache()
    for _ in range(5):
        decoder(torch.randn(2, 1, WIDTH, dtype=torch.float64), memory, cache=cache)
    assert sorted(seen) == [1] * (5 * 3) + [7] * 3


@pytest.mark.parametrize("extra", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_appended_keys_stay_behind_those_of_the_cache(extra):
    from cvattn.core.cache import GrowingKeyValues

    attention = fill(MultiHeadAttention(WIDTH, HEADS, **extra).double())
    x = torch.randn(3, 5, WIDTH, dtype=torch.float64)
    want, weights = attention(x, is_causal=True, need_weights=True)
    assert isinstance(want, Tensor)
    cache = GrowingKeyValues()
    first = attention(x[:, :3], is_causal=True, cache=cache)
    got, found = attention(x[:, 3:], is_causal=True, cache=cache, need_weights=True)
    assert_near(torch.cat([first, got], dim=1), want)
    assert_near(found, weights[:, :, 3:])


def test_an_empty_cache_has_no_length():
    cache = make().new_cache()
    cache.select(torch.tensor([0]))  # before anything is kept: nothing to select
    assert cache.length == 0


@pytest.mark.parametrize("bad", [None, "hidden", "seen"])
def test_what_is_not_finite_is_hidden_or_shown_as_without_a_cache(bad):
    """The look for NaN, spared where the keys are finite, is not spared where they are not."""
    decoder, size = make(), 19  # enough keys for the fused kernel
    memory, lengths = torch.randn(2, size, WIDTH).double(), torch.tensor([19, 11])
    mask = masks.length_mask(lengths, size)
    if bad is not None:
        memory[1, 15 if bad == "hidden" else 3] = float("nan")
    x, cache = torch.randn(2, 4, WIDTH).double(), decoder.new_cache()
    want = decoder(x, memory, memory_mask=mask)
    pieces = [decoder(x[:, i : i + 1], memory, memory_mask=mask, cache=cache) for i in range(4)]
    got = torch.cat(pieces, dim=1)
    assert got[1].isnan().all() == (bad == "seen")
    assert torch.equal(got.isnan(), want.isnan())
    assert_near(got.nan_to_num(), want.nan_to_num())
    assert [layer.cross.finite for layer in cache.layers] == [bad is None] * 3

"""Queries and keys that are normalised and turned: against formulas, timm, caches, compilers."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_hides, assert_near, call, fill, loop_attention, outcome
from timm.layers import AttentionRope, LayerNorm, RmsNorm
from torch import nn

from cvattn.core import AxialRotary, Decoder, MultiHeadAttention, Rotary, masks
from cvattn.core.cache import GrowingKeyValues
from cvattn.maps import capture_attention

WIDTH, HEADS, HEAD = 24, 3, 8
NORMS = [None, "layer", "rms"]
double = pytest.mark.usefixtures("float64")


def normalised(x, norm, kind):
    if kind is None:
        return x
    x = x - x.mean(-1, keepdim=True) if kind == "layer" else x
    x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return x * norm.weight + (norm.bias if kind == "layer" else 0.0)


def parts(module, x, kind, rotary, *, turn=True):
    """q, k and v of each head by the formula."""
    made = []
    for name in "qkv":
        layer = getattr(module, f"{name}_proj")
        heads = (x @ layer.weight.T + (0.0 if layer.bias is None else layer.bias)).unflatten(
            -1, (module.num_heads, -1)
        )
        if name != "v":
            heads = normalised(heads, getattr(module, f"{name}_norm"), kind)
            heads = rotary.turn(heads) if rotary is not None and turn else heads
        made.append(heads.transpose(1, 2))
    return made


def by_formula(module, x, kind, rotary, mask):
    output, _ = loop_attention(*parts(module, x, kind, rotary), attn_mask=mask)
    return output.transpose(1, 2).flatten(2) @ module.out_proj.weight.T + module.out_proj.bias


@double
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("qkv_bias", [True, False, "qv"])
def test_by_the_formula(kind, turned, qkv_bias):
    module = fill(MultiHeadAttention(WIDTH, HEADS, qk_norm=kind, qkv_bias=qkv_bias))
    assert (module.k_proj.bias is not None) == (qkv_bias is True)
    assert (module.v_proj.bias is not None) == (qkv_bias is not False)
    rotary = Rotary(HEAD)(5) if turned else None
    x, mask = torch.randn(2, 5, WIDTH), assert_hides(torch.rand(5, 5) < 0.7)

    class Formula(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x):
            return by_formula(module, x, kind, rotary, mask)

    got = outcome(module, x, attn_mask=mask, rotary=rotary)
    want = outcome(Formula(), x)
    assert_near(got[0], want[0])
    assert_near(got[1], want[1])
    for name, slope in got[2].items():
        nothing = "k_proj.bias" if kind is None else "k_norm.bias"  # but rounding, unturned
        if turned or name != nothing:
            assert_near(slope, want[2][f"inner.{name}"], name)


@double
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("halves", [False, True])
def test_equals_timms_attention(kind, halves):
    layer = {None: None, "layer": LayerNorm, "rms": RmsNorm}[kind]
    theirs = fill(
        AttentionRope(
            WIDTH,
            HEADS,
            norm_layer=layer,
            qk_norm=kind is not None,
            num_prefix_tokens=2,
            rotate_half=halves,
        )
    )
    ours = MultiHeadAttention(WIDTH, HEADS, qk_norm=kind, norm_eps=theirs.q_norm.eps if kind else 1)
    state = dict(zip("qkv", theirs.qkv.weight.chunk(3), strict=True))
    biases = dict(zip("qkv", theirs.qkv.bias.chunk(3), strict=True))
    named = {f"{name}_proj.weight": value for name, value in state.items()}
    named |= {f"{name}_proj.bias": value for name, value in biases.items()}
    named |= {f"out_{name}": value for name, value in theirs.state_dict().items() if "proj" in name}
    named |= {name: value for name, value in theirs.state_dict().items() if "norm" in name}
    ours.load_state_dict(named)
    rotary = AxialRotary(HEAD, (2, 3), pairs="halves" if halves else "interleaved", prefix=2)(
        (2, 3)
    )
    cos, sin = (
        part[2:].repeat(1, 2) if halves else part[2:].repeat_interleave(2, 1)
        for part in (rotary.cos, rotary.sin)
    )
    x = torch.randn(2, 8, WIDTH)
    want = theirs(x, rope=torch.cat([sin, cos], dim=-1))
    assert_near(ours(x, rotary=rotary), want)


@double
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("extra", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}])
def test_weights_capture_and_appended_keys(kind, extra):
    """What is appended is neither normalised nor turned; looking sees queries and keys as used."""
    module = fill(MultiHeadAttention(WIDTH, HEADS, qk_norm=kind, **extra))
    rotary, x = Rotary(HEAD)(5), torch.randn(2, 5, WIDTH)
    q, k, _ = parts(module, x, kind, rotary)
    if extra:
        more = module.bias_k if module.bias_k is not None else torch.zeros(1, 1, WIDTH)
        k = torch.cat([k, more.view(1, HEADS, 1, HEAD).expand(2, -1, -1, -1)], dim=2)
    want = (q @ k.mT / HEAD**0.5).softmax(-1)
    with capture_attention(module) as maps:
        output, weights = module(x, need_weights=True, rotary=rotary)
    assert_near(weights, want)
    assert_near(maps[""], want)
    assert torch.equal(output, module(x, rotary=rotary))


@double
@pytest.mark.parametrize("kind", NORMS)
def test_a_cache_keeps_keys_as_they_are_used(kind):
    module, rotary = fill(MultiHeadAttention(WIDTH, HEADS, qk_norm=kind)), Rotary(HEAD)
    x, cache = torch.randn(2, 7, WIDTH), GrowingKeyValues()
    want = module(x, is_causal=True, rotary=rotary(7))
    for start, stop in ((0, 3), (3, 4), (4, 7)):
        turned = rotary(stop - start, start=start)
        got = module(x[:, start:stop], is_causal=True, rotary=turned, cache=cache)
        assert_near(got, want[:, start:stop])
    assert_near(
        cache.keys[:, :7].unflatten(-1, (HEADS, HEAD)).transpose(1, 2),
        parts(module, x, kind, rotary(7))[1],
    )


@double
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_decoder_piece_by_piece_with_memory_that_has_places(norm):
    decoder = fill(Decoder(WIDTH, HEADS, 13, 2, norm=norm, qk_norm=norm)).eval()
    rotary = Rotary(HEAD, theta=20.0)
    x, memory, places = torch.randn(2, 6, WIDTH), torch.randn(2, 5, WIDTH), 6 * torch.rand(2, 5)
    mask = masks.length_mask(torch.tensor([5, 3]), 5)
    terms = {"memory_mask": mask, "memory_rotary": rotary.at(places)}
    want = decoder(x, memory, rotary=rotary(6), **terms)
    cache = decoder.new_cache()
    for start, stop in ((0, 2), (2, 3), (3, 6)):
        turned = rotary(stop - start, start=cache.length)
        got = decoder(x[:, start:stop], memory, rotary=turned, cache=cache, **terms)
        assert_near(got, want[:, start:stop])
    # All places moved by the same are the same places.
    moved = terms | {"memory_rotary": rotary.at(places + 3)}
    assert_near(decoder(x, memory, rotary=rotary(6, start=3), **moved), want)
    for other in ({**terms, "memory_rotary": rotary.at(places + 3)}, {"memory_mask": mask}):
        assert (decoder(x, memory, rotary=rotary(6), **other) - want).abs().max() > 1e-3


def test_places_of_queries_alone_are_refused():
    module, x, memory = MultiHeadAttention(WIDTH, HEADS), *torch.randn(2, 2, 5, WIDTH)
    with pytest.raises(ValueError, match=r"given only rotary; expected both or none"):
        module(x, memory, rotary=Rotary(HEAD)(5))
    with pytest.raises(ValueError, match=r"given only key_rotary"):
        module(x, memory, key_rotary=Rotary(HEAD)(5))
    for options in ({"qk_norm": "batch"}, {"qkv_bias": "k"}):
        with pytest.raises(ValueError, match="expected"):
            MultiHeadAttention(WIDTH, HEADS, **options)


class Turned(nn.Module):
    """As a network uses them: tables of its own, one attention."""

    def __init__(self, kind):
        super().__init__()
        self.rotary = Rotary(HEAD, max_length=4)
        self.attention = MultiHeadAttention(WIDTH, HEADS, qk_norm=kind)

    def forward(self, x):
        return self.attention(x, rotary=self.rotary(x.shape[1]))


@pytest.mark.parametrize(
    ("kind", "autocast"),
    [
        ("rms", True),
        *(pytest.param(kind, False, marks=pytest.mark.slow) for kind in NORMS),
        *(pytest.param(kind, True, marks=pytest.mark.slow) for kind in (None, "layer")),
    ],
)
def test_compiles_whole_and_half_precision_keeps_its_dtype(kind, autocast):
    module = fill(Turned(kind))
    x = torch.randn(2, 7, WIDTH, requires_grad=True)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got, want = compiled(x), module(x)
    assert torch.equal(got, want)
    assert got.dtype == (torch.bfloat16 if autocast else torch.float32)
    seen = []
    module.attention.observers = (lambda used: seen.extend((used.query.dtype, used.key.dtype)),)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        module(x)
    module.attention.observers = ()
    assert set(seen) == {got.dtype}
    half = copy.deepcopy(module).bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16
    error = (half(x.bfloat16()).float() - module(x)).abs().max()
    assert error < 0.1 * module(x).abs().max()
    grads = torch.autograd.grad(got.float().square().sum(), x)
    assert grads[0].isfinite().all()


@pytest.mark.parametrize("length", [3, 7])
def test_exports(length):
    """Within the table that is ready, and beyond it."""
    module, x = fill(Turned("rms")).eval().double(), torch.randn(2, length, WIDTH).double()
    program = torch.export.export(module, (x,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    assert_near(torch.export.load(file).module()(x), call(module, x))


def test_scores_stay_finite_where_they_would_overflow():
    """What qk_norm is for: activations that grow; F.normalize says how large scores can get."""
    module = MultiHeadAttention(WIDTH, HEADS, qk_norm="rms", norm_eps=0.0).double()
    x = 1e6 * torch.randn(1, 5, WIDTH, dtype=torch.float64)
    q, k, _ = parts(module, x, None, None)
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * HEAD**0.5
    assert_near(module(x, need_weights=True)[1], scores.softmax(-1))

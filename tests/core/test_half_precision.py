"""Half precision: as accurate as torch's own kernel, and no NaN of finite numbers, on any route.

The rule of accuracy: against float64, at most twice the error of ``F.scaled_dot_product_attention``
in the same dtype, with q and k padded to the value's width where a kernel needs that.
"""

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_hides
from torch.nn.attention import SDPBackend, sdpa_kernel

from cvattn import MultiHeadAttention, SelfAttention2d, capture_attention
from cvattn.core import attention, attention_weights, use_route
from cvattn.core.attention import Route, reference_attention, routing, tile_kernel, tiles
from cvattn.core.attention import processor as this_processor
from cvattn.maps import attention_heat, attention_rollout

BATCH, HEADS, LENGTH, SIZE = 2, 3, 67, 131
HALVES = (torch.bfloat16, torch.float16)
MACHINES = [(torch.bfloat16, name) for name in ("amx", "native", "emulated")]
MACHINES += [(torch.float16, "native")]
WIDTHS = {"narrow": (16, 128), "tokens": (64, 64), "wide": (40, 24)}
TERMS = ("none", "padding", "causal", "bias", "all")


@pytest.fixture(params=["amx", "native", "emulated"])
def processor(request, monkeypatch):
    """Those that multiply bfloat16, by tiles (if it has AVX512) or not, and one that cannot."""
    monkeypatch.setattr(this_processor, "has_bfloat16", lambda: request.param != "emulated")
    monkeypatch.setattr(this_processor, "has_amx", lambda: request.param == "amx")
    return request.param


@pytest.fixture(params=["direct", "tiled"])
def route(request, monkeypatch):
    """Tiles of 19 rows, the last one of fewer."""
    monkeypatch.setattr(routing, "choose_route", lambda call: Route(request.param, "forced", {}))
    monkeypatch.setattr(tiles, "TILE", 19 * SIZE)
    return request.param


def make_terms(kind, dtype):
    terms = {}
    if kind in ("padding", "all"):
        lengths = torch.tensor([SIZE, SIZE - 29])
        mask = torch.arange(SIZE) < lengths[:, None]
        terms["attn_mask"] = assert_hides(mask[:, None, None])
    if kind in ("causal", "all"):
        terms["is_causal"] = True
    if kind in ("bias", "all"):
        terms["attn_bias"] = torch.randn(HEADS, LENGTH, SIZE).to(dtype)[None]
    return terms


def by_torch(query, key, value, scale, attn_mask=None, attn_bias=None, is_causal=False):
    """The same in torch's kernel: one additive mask, one width."""
    term = torch.zeros(1, 1, LENGTH, SIZE, dtype=query.dtype)
    term = term if attn_bias is None else term + attn_bias
    if attn_mask is not None:
        term = term.masked_fill(~attn_mask, float("-inf"))
    if is_causal:
        seen = torch.ones(LENGTH, SIZE, dtype=torch.bool).tril(SIZE - LENGTH)
        term = term.masked_fill(~seen, float("-inf"))
    width = max(query.shape[-1], value.shape[-1])
    padded = [F.pad(x, (0, width - x.shape[-1])) for x in (query, key, value)]
    try:
        output = F.scaled_dot_product_attention(*padded, term, scale=scale)
    except RuntimeError:  # an AMX processor told to do without AVX512: the kernel wants both
        if this_processor.has_bfloat16():
            pytest.skip("torch's kernel does not run here, and its plain products are float32")
        with sdpa_kernel(SDPBackend.MATH):
            output = F.scaled_dot_product_attention(*padded, term, scale=scale)
    return output[..., : value.shape[-1]]


def results(function, inputs, slope):
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, slope)]


def off(found, exact):
    """Relative, in 2-norms."""
    return [((f.double() - e).norm() / e.norm()).item() for f, e in zip(found, exact, strict=True)]


SPREADS = [
    (kind, std) for kind in TERMS for std in (2, 10, 30) if std == 10 or kind in ("none", "all")
]


@pytest.mark.sweep(70)
@pytest.mark.parametrize(("kind", "std"), SPREADS)
@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize(("dtype", "processor"), MACHINES, indirect=["processor"], ids=str)
def test_off_by_at_most_twice_the_error_of_torchs_kernel(
    dtype, widths, kind, std, route, processor
):
    width, value_width = widths
    shapes = [(LENGTH, width), (SIZE, width), (SIZE, value_width)]
    inputs = [torch.randn(BATCH, HEADS, *s).to(dtype) for s in shapes]
    inputs[2] += 1.0  # values with a mean, as biases and ReLUs give them
    slope = torch.randn(BATCH, HEADS, LENGTH, value_width).to(dtype)
    scale = std * width**-0.5
    terms = make_terms(kind, dtype)
    doubled = {k: v.double() if k == "attn_bias" else v for k, v in terms.items()}
    exact = results(
        lambda *x: by_torch(*x, scale, **doubled), [x.double() for x in inputs], slope.double()
    )
    found = results(lambda *x: attention(*x, scale=scale, **terms), inputs, slope)
    theirs = results(lambda *x: by_torch(*x, scale, **terms), inputs, slope)
    assert [x.dtype for x in found] == [dtype] * 4
    for name, error, allowed in zip(
        ("output", "dq", "dk", "dv"), off(found, exact), off(theirs, exact), strict=True
    ):
        assert error <= 2 * allowed, f"{name}: off by {error:.4f}, torch's kernel by {allowed:.4f}"
    with torch.no_grad():
        alone = attention(*inputs, scale=scale, **terms)
    assert off([alone], exact[:1])[0] <= 2 * off(theirs[:1], exact[:1])[0]


@pytest.mark.parametrize("std", [2, 30])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_weights_are_rounded_once(dtype, std):
    query, key = (torch.randn(BATCH, HEADS, n, 16).to(dtype) for n in (LENGTH, SIZE))
    terms = {"scale": std / 4, "is_causal": True}
    exact = attention_weights(query.double(), key.double(), **terms)
    found = attention_weights(query, key, **terms)
    assert found.dtype == dtype
    # Half an eps of the number itself where nothing else is lost, or of the least normal one.
    bound = torch.finfo(dtype).eps * exact + torch.finfo(dtype).tiny
    assert ((found.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("kind", TERMS)
def test_second_derivative(kind, route, processor):
    """Against plain products in bfloat16: torch's kernels have no second derivative."""
    shapes = [(LENGTH, 16), (SIZE, 16), (SIZE, 24)]
    inputs = [torch.randn(BATCH, HEADS, *s).bfloat16() for s in shapes]
    terms = make_terms(kind, torch.bfloat16)
    doubled = {k: v.double() if k == "attn_bias" else v for k, v in terms.items()}

    def plain(query, key, value, attn_mask=None, attn_bias=None, is_causal=False):
        scores = query @ key.mT * 0.5
        scores = scores if attn_bias is None else scores + attn_bias
        allowed = torch.ones(LENGTH, SIZE, dtype=torch.bool)
        allowed = allowed.tril(SIZE - LENGTH) if is_causal else allowed
        allowed = allowed if attn_mask is None else allowed & attn_mask
        return scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ value

    def second(function, given, **terms):
        leaves = [x.detach().requires_grad_() for x in given]
        output = function(*leaves, **terms)
        slopes = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in slopes), leaves)

    exact = second(plain, [x.double() for x in inputs], **doubled)
    found = second(attention, inputs, scale=0.5, **terms)
    theirs = second(plain, inputs, **terms)
    for error, allowed in zip(off(found, exact), off(theirs, exact), strict=True):
        assert error <= allowed


# Their products with themselves are beyond 65504, the largest float16, all but a few.
LARGE = 500.0


def large_inputs(dtype, value=100.0):
    shapes = [(LENGTH, 8), (SIZE, 8), (SIZE, 11)]
    query, key, values = (torch.randn(BATCH, HEADS, *s) for s in shapes)
    inputs = [x.to(dtype) for x in (LARGE * query, LARGE * key, value * values)]
    assert (inputs[0].half() @ inputs[1].half().mT).isinf().any()
    return inputs


@pytest.mark.sweep(20)
@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_finite_numbers_give_finite_results(dtype, kind, route, processor):
    inputs = large_inputs(dtype)
    terms = make_terms(kind, dtype)
    doubled = {k: v.double() if k == "attn_bias" else v for k, v in terms.items()}
    exact = reference_attention(*(x.double() for x in inputs), **doubled, scale=1.0)
    found = attention(*inputs, **terms, scale=1.0)
    largest = exact.abs().max()
    assert (found.double() - exact).abs().max() <= 2 * torch.finfo(dtype).eps * largest
    weights = attention_weights(*inputs[:2], **terms, scale=1.0)
    assert weights.isfinite().all()
    assert (weights.float().sum(-1) - 1).abs().max() <= 2 * torch.finfo(dtype).eps
    leaves = [x.requires_grad_() for x in inputs]
    slopes = torch.autograd.grad(
        attention(*leaves, **terms, scale=1.0).float().square().mean(), leaves, create_graph=True
    )
    assert all(x.isfinite().all() for x in slopes)
    second = torch.autograd.grad(sum(x.float().square().mean() for x in slopes), leaves)
    assert all(x.isfinite().all() for x in second)


def test_products_of_slopes_and_values_may_overflow(route):
    """dO V^T is beyond float16; what it does to q and k, by a factor of 1e-4, is not."""
    query, key, value = large_inputs(torch.float16, value=300.0)
    leaves = [(1e-3 * query).requires_grad_(), (1e-3 * key).requires_grad_(), value]
    slope = torch.full((BATCH, HEADS, LENGTH, 11), 300.0, dtype=torch.float16)
    found = torch.autograd.grad(attention(*leaves, scale=1e-4), leaves[:2], slope)
    assert all(x.isfinite().all() for x in found)
    assert all(x.abs().max() > 0 for x in found)


@pytest.mark.parametrize("lowest", [-65504.0, float(torch.finfo(torch.float32).min)])
def test_a_bias_of_the_lowest_number_is_no_infinity(lowest, route):
    """As masks of other libraries have it; where it is all that a row has, the row is a mean."""
    query, key, value = (x / LARGE for x in large_inputs(torch.float16))
    bias = torch.zeros(LENGTH, SIZE)
    bias[3], bias[:, 5] = lowest, lowest
    bias = bias.half() if lowest == -65504.0 else bias
    found = attention(query, key, value, attn_bias=bias)
    exact = reference_attention(*(x.double() for x in (query, key, value)), attn_bias=bias.double())
    assert off([found], [exact])[0] < 2 * torch.finfo(torch.float16).eps


@pytest.mark.parametrize("autocast", [False, True])
def test_a_float32_bias_of_a_fused_kernel_in_float16_stays_finite(autocast):
    """-1e9, a common way to write a mask, is beyond float16: a row of nothing else is a mean."""
    query, key, value = (x / LARGE for x in large_inputs(torch.float16))
    bias = torch.zeros(LENGTH, SIZE)
    bias[3], bias[1, 2] = -1e9, float("-inf")
    given = [x.float() if autocast else x for x in (query, key, value)]
    with use_route("padded"), torch.autocast("cpu", torch.float16, enabled=autocast):
        found = attention(*given, attn_bias=bias)
    assert found.dtype == torch.float16
    exact = reference_attention(*(x.double() for x in (query, key, value)), attn_bias=bias.double())
    assert off([found], [exact])[0] < 2 * torch.finfo(torch.float16).eps


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_block_with_gamma_0_is_the_identity(dtype, autocast):
    block = SelfAttention2d(64)
    x = 1000 * torch.randn(2, 64, 6, 7)
    if not autocast:
        block, x = block.to(dtype), x.to(dtype)
    with torch.autocast("cpu", dtype, enabled=autocast):
        assert torch.equal(block(x), x)
        output, weights = block(x, need_weights=True)
        assert torch.equal(output, x)
        assert weights.isfinite().all()
        with capture_attention(block) as maps:
            block(x)
        assert maps[""].isfinite().all()
        heat = attention_heat(block, x, at=(2, 3))
        assert heat[""].isfinite().all()
        block.gamma.data.fill_(0.5)
        x.requires_grad_()
        output = block(x)
        assert output.isfinite().all()
    output.float().mean().backward()
    assert all(p.grad.isfinite().all() for p in (x, *block.parameters()))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_tokens_with_large_activations(dtype):
    module = MultiHeadAttention(26, 2).to(dtype)
    x = (2000 * torch.randn(2, 9, 26)).to(dtype)
    output, weights = module(x, need_weights=True, is_causal=True)
    assert output.isfinite().all()
    assert weights.isfinite().all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_rollout_loses_nothing_from_layer_to_layer(dtype):
    layers = {str(i): (3 * torch.randn(2, 3, 37, 37)).softmax(-1).to(dtype) for i in range(12)}
    found = attention_rollout(layers)
    exact = attention_rollout({name: weights.double() for name, weights in layers.items()})
    assert found.dtype == torch.float32
    assert (found.sum(-1) - 1).abs().max() < 12 * torch.finfo(torch.float32).eps
    assert (found - exact).abs().max() < 12 * torch.finfo(torch.float32).eps * exact.max()


@pytest.mark.parametrize(("amx", "kernel"), [(True, True), (False, True), (True, False)])
def test_the_forward_tiles_take_torchs_kernel_on_amx_alone(amx, kernel, monkeypatch):
    for name, able in (("has_bfloat16", True), ("has_amx", amx), ("has_half_kernel", kernel)):
        monkeypatch.setattr(this_processor, name, lambda able=able: able)
    query, key = torch.randn(1, 2, 5, 8).bfloat16(), torch.randn(1, 2, 31, 8).bfloat16()
    terms = tiles.Terms.of(query, key, None, None, False)
    assert tile_kernel.takes(query, key, key, terms, 0.0) == (amx and kernel)

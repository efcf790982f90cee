"""What can be seen of a GPU without one: devices, what would be waited for, samples of a call.

Fake tensors say where each would be, refuse operators whose tensors lie in two places, and raise
where a value would be read, which on a GPU waits for it.
"""

import pytest
import torch
from oracles import assert_hides, assert_near
from torch._subclasses.fake_tensor import FakeTensorMode

from cvattn import SelfAttention2d
from cvattn.core import attention, attention_weights, use_route
from cvattn.core.attention import criss_cross_ops, reference_attention, tiled, torch_kernel
from cvattn.core.attention.criss_cross import criss_cross_attention
from cvattn.core.local import neighborhood_attention, window_attention

ROUTES = ("fused", "padded", "tiled", "direct")
TERMS = ("none", "mask", "bias", "causal", "all")
LENGTH, SIZE = 7, 11


@pytest.fixture
def fake():
    with FakeTensorMode(), torch.no_grad():  # without a driver there is no backward pass
        yield torch.device("cuda")


def make_terms(kind, device, batch=1):
    terms = {}
    if kind in ("mask", "all"):
        terms["attn_mask"] = torch.arange(SIZE, device=device) < torch.randint(
            2, SIZE, (batch, 1, LENGTH, 1), device=device
        )
    if kind in ("bias", "all"):
        terms["attn_bias"] = torch.randn(batch, 3, LENGTH, SIZE, device=device)
    if kind in ("causal", "all"):
        terms["is_causal"] = True
    return terms


def tokens(device, batch=2, width=5, **options):
    sizes = ((LENGTH, width), (SIZE, width), (SIZE, 13))
    return [torch.randn(batch, 3, *size, device=device, **options) for size in sizes]


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("route", ROUTES)
def test_every_route_stays_on_the_device_and_waits_for_nothing(route, kind, fake):
    query, key, value = tokens(fake, width=8 if route == "fused" else 5)
    value = value[..., :8]
    with use_route(route):
        output = attention(query, key, value, **make_terms(kind, fake))
    assert output.device.type == "cuda"
    weights = attention_weights(query, key, rows=[0, 3], **make_terms(kind, fake))
    assert weights.device.type == "cuda"


@pytest.mark.parametrize("kind", TERMS)
def test_so_do_the_tiles_themselves(kind, fake):
    given = tokens(fake)
    terms = {"attn_mask": None, "attn_bias": None, "is_causal": False} | make_terms(kind, fake)
    more = (*terms.values(), 0.5, 0.0, None)
    output, nan_rows = tiled._forward(*given, *more)
    for wanted in {False, terms["attn_bias"] is not None}:
        found = tiled._backward(output, *given, *more, wanted)
        assert {x.device.type for x in (output, nan_rows, *found)} == {"cuda"}


@pytest.mark.parametrize("masked", [False, True])
def test_and_local_attention(masked, fake, monkeypatch):
    query, key, value = (torch.randn(2, 3, 11, 13, 8, device=fake) for _ in "qkv")
    mask = torch.ones(2, 11, 13, dtype=torch.bool, device=fake) if masked else None
    settled = (mask, 0.5, 0.0, None)
    output, log_sum = criss_cross_ops._forward(query, key, value, *settled)
    found = criss_cross_ops._backward(output, output, log_sum, query, key, value, *settled)
    assert {x.device.type for x in (output, log_sum, *found)} == {"cuda"}

    def brought(*args, **options):
        raise AssertionError("numbers of the host are brought to the device, which waits for them")

    monkeypatch.setattr(torch, "tensor", brought)
    for output in (
        criss_cross_attention(query, key, value, key_mask=mask),
        window_attention(query, key, value, window=(4, 3), shift=(1, 2), key_mask=mask),
        neighborhood_attention(query, key, value, window=(3, 5), key_mask=mask),
        neighborhood_attention(query, key, value, window=(3, 3), dilation=2, key_mask=mask),
    ):
        assert output.device.type == "cuda"


@pytest.mark.parametrize("form", ["common", "biggan", "unet", "non_local"])
def test_and_the_blocks(form, fake):
    make = SelfAttention2d if form == "common" else getattr(SelfAttention2d, form)
    options = {"groups": 4} if form == "unet" else {}
    block = make(16, device=fake, **options).eval()
    x = torch.randn(2, 16, 5, 7, device=fake)
    for mask in (None, torch.ones(2, 5, 7, dtype=torch.bool, device=fake)):
        assert block(x, mask=mask).device.type == "cuda"


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("own", [False, True])
def test_more_samples_than_a_grid_has_places_are_computed_in_parts(kind, own, float64, monkeypatch):
    batch = 7
    calls = []

    def counted(*given, **options):
        calls.append(len(given[0]))
        return sdpa(*given, **options)

    sdpa = torch_kernel.F.scaled_dot_product_attention
    monkeypatch.setattr(torch_kernel, "most_samples", lambda device: 3)
    monkeypatch.setattr(torch_kernel.F, "scaled_dot_product_attention", counted)
    query, key, value = (x.requires_grad_() for x in tokens("cpu", batch, width=13))
    terms = make_terms(kind, "cpu", batch if own else 1)
    if "attn_mask" in terms:
        assert_hides(terms["attn_mask"])
    with use_route("fused"):
        output = attention(query, key, value, **terms)
    assert calls == [3, 3, 1]
    expected = reference_attention(query, key, value, **terms)
    assert_near(output, expected, "output")
    upstream = torch.randn_like(output)
    found, wanted = (
        torch.autograd.grad(y, (query, key, value), upstream, create_graph=True)
        for y in (output, expected)
    )
    for name, mine, theirs in zip(("query", "key", "value"), found, wanted, strict=True):
        assert_near(mine, theirs, name)
    # A gradient penalty, through each part.
    again, exact = (
        torch.autograd.grad(sum(x.square().sum() for x in each), query)[0]
        for each in (found, wanted)
    )
    assert_near(again, exact, "second derivative")


def test_a_cpu_and_an_export_take_any_number():
    assert torch_kernel.most_samples("cpu") is None
    assert torch_kernel.most_samples("cuda") == 65_535


def test_rows_begin_where_a_kernel_reads_them():
    """A view of every token but its first number, and one that begins at an odd place."""
    wide = torch.arange(2.0 * 3 * 5 * 9).view(2, 3, 5, 9)
    shifted = torch.arange(2.0 * 3 * 5 * 8 + 1)[1:].view(2, 3, 5, 8)
    for x in (wide[..., 1:], shifted):
        assert x.stride(-1) == 1
        dense = torch_kernel._dense(x, 8, 4)
        assert torch.equal(dense, x)
        assert torch_kernel._in_step(dense, 4)
        assert torch_kernel._dense(x, 8, 1) is x  # a CPU reads them anywhere
    # What fits is not copied: heads beside each other, one token, samples that share all.
    for x in (
        torch.zeros(2, 5, 3, 8).transpose(1, 2),
        torch.zeros(1, 1, 1, 9)[..., :8],
        torch.zeros(1, 3, 5, 8).expand(2, -1, -1, -1),
        torch.zeros(2, 3, 6, 8)[:, :, 1:],
    ):
        assert torch_kernel._dense(x, 8, 4) is x

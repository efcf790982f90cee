"""Which route is chosen, on machines that are here and on those that are not."""

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from cvattn.blocks import SelfAttention2d
from cvattn.core import MultiHeadAttention, attention
from cvattn.core.attention import AttentionCall, choose_route, processor, record_routes
from cvattn.core.attention.call import count_scores, describe_call
from cvattn.core.attention.plan import SCORES_BOUND, padded_widths

HALF, SINGLE, DOUBLE = torch.bfloat16, torch.float32, torch.float64


def call(length, head_dim, value_dim, *, batch=2, dtype=SINGLE, device="cpu", **more):
    return AttentionCall(batch, 1, length, length, head_dim, value_dim, dtype, device, **more)


# (call, has bfloat16 instructions) -> route
CPU = [
    (call(256, 16, 128, batch=64), True, "direct"),  # 16 MiB
    (call(256, 16, 128, batch=65), True, "tiled"),
    (call(10_000, 16, 128), True, "tiled"),
    (call(10_000, 64, 64), True, "fused"),
    (call(64, 64, 64), True, "fused"),
    (call(3, 64, 64), True, "fused"),
    (call(64, 64, 64, transformed=True), True, "direct"),
    (call(10_000, 64, 64, transformed=True), True, "tiled"),
    (call(10_000, 64, 64, dropout=True), True, "tiled"),
    (call(100, 64, 64, dropout=True), True, "direct"),
    (call(10_000, 64, 64, bias_grad=True), True, "tiled"),
    (call(10_000, 64, 64, built_mask=10_000**2), True, "tiled"),
    (call(1000, 64, 64, built_mask=1000**2), True, "fused"),
    (call(10_000, 64, 64, dtype=DOUBLE), True, "fused"),
    (call(256, 16, 128, dtype=HALF), True, "direct"),
    (call(256, 16, 128, dtype=HALF), False, "tiled"),
    (call(65, 64, 64, dtype=HALF), False, "direct"),
    (call(10_000, 64, 64, dtype=HALF), True, "tiled"),
    (call(10_000, 64, 64, dtype=HALF, grad=False), True, "fused"),
    (call(10_000, 64, 64, dtype=HALF, grad=False), False, "tiled"),
    (call(65, 64, 64, dtype=torch.float16, grad=False), True, "direct"),
    (call(256, 16, 128, dtype=torch.float16), True, "tiled"),
]


@pytest.mark.parametrize(("given", "instructions", "route"), CPU)
def test_on_a_cpu(given, instructions, route, monkeypatch):
    monkeypatch.setattr(processor, "has_bfloat16", lambda: instructions)
    monkeypatch.setattr(processor, "has_half_kernel", lambda: True)
    chosen = choose_route(given)
    assert chosen.name == route
    assert chosen.reason
    assert route not in chosen.refused
    if route == "tiled":
        assert {"fused", "direct"} <= set(chosen.refused)
    if route != "direct":
        return
    assert count_scores(given) * given.dtype.itemsize <= SCORES_BOUND


# Trap 6: kernels take multiples of 16 bytes, unequal ones too; C = 32 has q and k 4 wide.
CUDA = [
    (call(4096, 4, 32, dtype=HALF), "padded", (8, 32)),
    (call(4096, 16, 128, dtype=HALF), "fused", (16, 128)),
    (call(4096, 4, 32), "fused", (4, 32)),
    (call(4096, 3, 33), "padded", (4, 36)),
    (call(4096, 64, 512, dtype=torch.float16), "fused", (64, 512)),
    (call(4096, 1, 7, dtype=HALF), "padded", (8, 8)),
    (call(4096, 65, 65), "padded", (68, 68)),
    (call(4096, 16, 128, dtype=DOUBLE), "tiled", None),
    (call(64, 16, 128, dtype=DOUBLE), "direct", None),
    (call(10_000, 64, 64, built_mask=10_000**2), "tiled", None),
    (call(4096, 16, 128, dropout=True), "fused", (16, 128)),
    (call(4096, 16, 128, transformed=True), "tiled", None),
    (call(64, 4, 32, dtype=HALF, transformed=True), "direct", None),
    (call(4096, 16, 128, bias_grad=True), "fused", (16, 128)),
    # Only q, k and v tell torch's kernel to keep what a gradient is computed from.
    (call(4096, 16, 128, bias_grad=True, grad=False), "tiled", None),
    (call(64, 16, 128, bias_grad=True, grad=False), "direct", None),
    (call(4096, 16, 128, batch=70_000), "fused", (16, 128)),
    (call(3, 16, 128, batch=0), "direct", None),
    (call(0, 16, 128), "direct", None),
    (call(4096, 16, 128)._replace(heads=70_000), "tiled", None),
]


@pytest.mark.parametrize(("given", "route", "widths"), CUDA)
def test_trap_06_on_cuda(given, route, widths):
    given = given._replace(device="cuda")
    assert choose_route(given).name == route
    if widths is not None:
        assert padded_widths(given) == widths


def test_without_avx512_half_precision_leaves_the_fused_kernel(monkeypatch):
    monkeypatch.setattr(processor, "has_bfloat16", lambda: True)
    given = call(10_000, 64, 64, dtype=HALF, grad=False)
    for able, route in ((True, "fused"), (False, "tiled")):
        monkeypatch.setattr(processor, "has_half_kernel", lambda able=able: able)
        assert choose_route(given).name == route


def test_no_automatic_route_stores_more_scores_than_the_bound():
    for device in ("cpu", "cuda"):
        for length in (16, 64, 250, 1000, 4096, 65_536):
            for widths in ((8, 8), (16, 128), (128, 16)):
                for dtype in (DOUBLE, SINGLE, HALF, torch.float16):
                    for flag in ({}, {"dropout": True}, {"bias_grad": True}):
                        given = call(length, *widths, dtype=dtype, device=device, **flag)
                        stored = count_scores(given) * dtype.itemsize
                        assert choose_route(given).name != "direct" or stored <= SCORES_BOUND


def test_a_call_is_described_as_it_is():
    query, key = torch.zeros(2, 3, 5, 7), torch.zeros(2, 3, 11, 7)
    value = torch.zeros(2, 3, 11, 13)
    given = describe_call(query, key, value)
    assert given == AttentionCall(2, 3, 5, 11, 7, 13, SINGLE, "cpu", grad=False)
    for index in range(3):
        parts = [x.clone().requires_grad_(at == index) for at, x in enumerate((query, key, value))]
        assert describe_call(*parts).grad
        with torch.no_grad():
            assert not describe_call(*parts).grad
    assert count_scores(given) == 2 * 3 * 5 * 11
    # A mask that is there is not built; one for causality with L != S is, and one that combines.
    mask, bias = torch.ones(2, 1, 1, 11, dtype=torch.bool), torch.zeros(1, 3, 5, 11)
    assert describe_call(query, key, value, attn_mask=mask).built_mask == 0
    assert describe_call(query, key, value, is_causal=True).built_mask == 5 * 11
    assert describe_call(key, key, value, is_causal=True).built_mask == 0
    both = describe_call(query, key, value, attn_mask=mask, attn_bias=bias.requires_grad_())
    assert both.built_mask == 2 * 3 * 5 * 11
    assert both.bias_grad
    with torch.no_grad():
        assert not describe_call(query, key, value, attn_bias=bias).bias_grad
    assert describe_call(query, key, value, dropout_p=0.1).dropout
    with torch.autocast("cpu", HALF):
        assert describe_call(query, key, value).dtype == HALF
        # Autocast leaves float64 as it is.
        assert describe_call(query.double(), key.double(), value.double()).dtype == DOUBLE


def test_the_record_names_what_ran():
    block, tokens = SelfAttention2d(16), MultiHeadAttention(80, 2)
    with record_routes() as outer:
        block(torch.randn(1, 16, 7, 5))
        with record_routes() as inner:
            tokens(torch.randn(2, 17, 80))
    tokens(torch.randn(2, 17, 80))
    assert [(given.length, route.name) for given, route in outer] == [(35, "direct"), (17, "fused")]
    assert inner == outer[1:]


def kernels(function):
    """Names of the operators that ran."""
    # torch 2.10 warns of lost events unless they are accumulated.
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
        function()
    return {event.key for event in seen.key_averages()}


def test_trap_04_the_kernel_that_was_chosen_is_the_one_that_runs():
    """torch falls back to storing all scores without a word; the profiler says which it was."""
    fused, math = "aten::_scaled_dot_product_flash_attention_for_cpu", "aten::softmax"
    nchw = torch.randn(2, 7, 7 * 11).mT[:, None]  # as from a map in NCHW
    assert fused in kernels(lambda: attention(nchw, nchw, nchw))
    assert fused not in kernels(lambda: F.scaled_dot_product_attention(nchw, nchw, nchw))
    query, value = torch.randn(1, 1, 2500, 4), torch.randn(1, 1, 2500, 33)
    ran = kernels(lambda: attention(query, query, value))
    assert "cvattn::tiled_attention" in ran
    assert fused not in ran
    ran = kernels(lambda: attention(query[:, :, :99], query[:, :, :99], value[:, :, :99]))
    assert math in ran
    assert "cvattn::tiled_attention" not in ran

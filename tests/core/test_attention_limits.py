"""attention(): what it refuses, what it stores, and that compilers take it whole."""

import subprocess
import sys

import pytest
import torch
from oracles import assert_accurate, assert_hides
from torch import nn

from cvattn.core import attention, attention_weights
from cvattn.core.attention import plan

Q, K, V = (2, 3, 5, 7), (2, 3, 11, 7), (2, 3, 11, 7)

REFUSED = {
    "3-D query": ({"query": (2, 5, 7)}, ValueError, r"query has shape \(2, 5, 7\); expected 4 dim"),
    "heads differ": (
        {"key": (2, 1, 11, 7)},
        ValueError,
        r"key has .* \(2, 1\), query has",
    ),
    "batch differs": ({"value": (1, 3, 11, 7)}, ValueError, r"value has .* \(1, 3\), query has"),
    "widths differ": ({"key": (2, 3, 11, 6)}, ValueError, "query is 7 wide, key is 6 wide"),
    "tokens differ": ({"value": (2, 3, 10, 7)}, ValueError, "key has 11 tokens, value has 10"),
    "dtype": ({"key": torch.zeros(K).double()}, TypeError, "key is torch.float64, query is torch."),
    "float mask": (
        {"attn_mask": torch.zeros(5, 11)},
        TypeError,
        "is torch.float32.*attn_bias",
    ),
    "int mask": ({"attn_mask": torch.ones(5, 11).int()}, TypeError, "expected bool.*from_zero_one"),
    "bool bias": ({"attn_bias": torch.ones(5, 11).bool()}, TypeError, "attn_bias is torch.bool"),
    "int bias": ({"attn_bias": torch.ones(5, 11).long()}, TypeError, "attn_bias is torch.int64"),
    "3-D mask": ({"attn_mask": torch.ones(2, 5, 11).bool()}, ValueError, "3-D mask is ambiguous"),
    "3-D bias": ({"attn_bias": torch.ones(3, 5, 11)}, ValueError, r"attn_bias.*3-D mask is ambig"),
    "1-D mask": ({"attn_mask": torch.ones(11).bool()}, ValueError, r"\(11,\); expected \(L, S\)"),
    "per key": ({"attn_mask": torch.ones(2, 11).bool()}, ValueError, "masks.length_mask"),
    "transposed": ({"attn_mask": torch.ones(11, 5).bool()}, ValueError, r"scores \(2, 3, 5, 11\)"),
    "heads in mask": ({"attn_mask": torch.ones(2, 2, 5, 11).bool()}, ValueError, "broadcastable"),
    "dropout": ({"dropout_p": 1.0}, ValueError, r"dropout_p=1.0 is not a probability"),
    "dropout < 0": ({"dropout_p": -0.1}, ValueError, r"dropout_p=-0.1"),
}


@pytest.mark.parametrize(("changes", "kind", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(changes, kind, message):
    given = {"query": Q, "key": K, "value": V} | changes
    given = {k: torch.randn(v) if isinstance(v, tuple) else v for k, v in given.items()}
    with pytest.raises(kind, match=message):
        attention(**given)
    if "value" not in changes and "dropout_p" not in changes:
        given.pop("value")
        with pytest.raises(kind, match=message):
            attention_weights(**given)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([5], r"rows must lie in 0\.\.4, got \[5\]"),
        ([0, -1], r"rows must lie in 0\.\.4"),
        ([[0, 1]], "1-D sequence of integers"),
        ([0.0, 1.0], "1-D sequence of integers"),
        ([True, False, True, True, True], "1-D sequence of integers"),
    ],
)
def test_refused_rows(rows, message):
    with pytest.raises(ValueError, match=message):
        attention_weights(torch.randn(Q), torch.randn(K), rows=rows)


def test_weights_that_cannot_fit_are_refused_before_they_are_allocated():
    """A 2896 x 2896 map: 8.4 million queries, 512 TiB of weights; chosen rows are no problem."""
    query, key = (torch.randn(1, 1, 1).expand(1, 1, 2896**2, 1) for _ in range(2))
    with pytest.raises(MemoryError, match=r"8386816 queries and 8386816 keys.*GiB.*rows="):
        attention_weights(query, key)
    assert attention_weights(query, key, rows=[5]).shape == (1, 1, 1, 2896**2)


PEAK = """
import torch
from cvattn.core import attention
from cvattn.core.attention import reference_attention

def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

torch.set_num_threads(1)
torch.set_grad_enabled(False)
tokens = 9216
# As they come from a feature map: channels first, turned.
query, key, value = (torch.randn(1, 1, c, tokens).mT for c in (8, 8, 64))
small = (query[:, :, :512], key[:, :, :512], torch.randn(1, 1, 512, 8))
attention(*small)  # load the kernel
for route in (attention, reference_attention):
    open("/proc/self/clear_refs", "w").write("5")  # reset the high-water mark
    before = status("VmRSS")
    route(query, key, value)
    print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_trap_04_large_maps_do_not_store_the_scores():
    """96x96 positions, query 8 wide and value 64: N x N alone is 324 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    ours, stored = map(float, done.stdout.split())
    assert ours < 100
    assert stored > 300  # the measure sees what it is meant to see


class Attend(nn.Module):
    """attention() with everything on, as a module that compilers can take."""

    def forward(self, query, key, value, mask, bias):
        terms = {"attn_mask": mask, "attn_bias": bias, "is_causal": True}
        return attention(query, key, value, **terms), attention_weights(query, key, **terms)


def example(batch, width, value_width):
    query, key = torch.randn(batch, 3, 5, width), torch.randn(batch, 3, 7, width)
    mask = torch.rand(batch, 1, 5, 7) < 0.6
    mask[0, :, 3] = False
    return query, key, torch.randn(batch, 3, 7, value_width), assert_hides(mask), torch.randn(5, 7)


@pytest.mark.slow
@pytest.mark.parametrize("bound", [0, plan.SCORES_BOUND])
@pytest.mark.parametrize("widths", [(8, 8), (3, 11)])
def test_compiled_without_a_graph_break(widths, bound, monkeypatch):
    monkeypatch.setattr(plan, "SCORES_BOUND", bound)
    torch._dynamo.reset()
    module = Attend()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for batch in (2, 3):
        inputs = example(batch, *widths)
        assert_accurate(compiled(*inputs), module, *inputs)


@pytest.mark.slow
@pytest.mark.parametrize("widths", [(8, 8), (3, 11)])
def test_compiled_by_inductor(widths):
    torch._dynamo.reset()
    module = Attend()
    compiled = torch.compile(module, fullgraph=True)
    inputs = example(2, *widths)
    assert_accurate(compiled(*inputs), module, *inputs)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("widths", [(8, 8), (3, 11)])
def test_trap_17_exported_with_a_dynamic_batch(widths, strict):
    """Any batch: the choice of a route by size must not become a limit of the exported graph."""
    module = Attend()
    batch = torch.export.Dim("batch")
    dynamic = ({0: batch}, {0: batch}, {0: batch}, {0: batch}, None)
    program = torch.export.export(
        module, example(2, *widths), dynamic_shapes=dynamic, strict=strict
    ).module()
    for size in (1, 2, 5):
        inputs = example(size, *widths)
        assert_accurate(program(*inputs), module, *inputs)

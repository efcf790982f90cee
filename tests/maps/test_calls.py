"""Calls of torch's attention functions in every form, and what people do around them."""

import math
import threading
import warnings
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_near
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cvattn.core import MultiHeadAttention
from cvattn.maps import capture_attention


class Calls(nn.Module):
    """Attention of others: calls the function with what it was made with."""

    def __init__(self, num_heads: int | None = 1, **terms) -> None:
        super().__init__()
        self.num_heads, self.terms = num_heads, terms

    def forward(self, q: Tensor, k: Tensor | None = None, v: Tensor | None = None) -> Tensor:
        k, v = q if k is None else k, q if v is None else v
        return F.scaled_dot_product_attention(q, k, v, **self.terms)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def by_hand(q: Tensor, k: Tensor, terms: dict) -> Tensor:
    """(..., L, S): the formula of torch's documentation."""
    scale = terms.get("scale") or q.shape[-1] ** -0.5
    if terms.get("enable_gqa"):
        k = torch.stack([k[:, head // (q.shape[1] // k.shape[1])] for head in range(q.shape[1])], 1)
    scores = torch.einsum("...qe,...ke->...qk", q, k) * scale
    mask = terms.get("attn_mask")
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    if terms.get("is_causal"):
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    return scores.exp() / scores.exp().sum(-1, keepdim=True)


SEEN = torch.arange(35).view(5, 7) % 3 > 0
FORMS = {
    "as usual": ((2, 3, 5, 4), (2, 3, 7, 4), {}),
    "scale": ((2, 3, 5, 4), (2, 3, 7, 4), {"scale": 0.9}),
    "bool mask": ((2, 3, 5, 4), (2, 3, 7, 4), {"attn_mask": SEEN}),
    "bias of heads": ((2, 3, 5, 4), (2, 3, 7, 4), {"attn_mask": draw(3, 5, 7)}),
    "bias of samples": ((2, 3, 5, 4), (2, 3, 7, 4), {"attn_mask": draw(2, 1, 1, 7)}),
    "causal": ((2, 3, 5, 4), (2, 3, 5, 4), {"is_causal": True}),
    "causal, fewer queries": ((2, 3, 5, 4), (2, 3, 7, 4), {"is_causal": True}),
    "causal, more queries": ((2, 3, 7, 4), (2, 3, 5, 4), {"is_causal": True}),
    "grouped heads": ((2, 6, 5, 4), (2, 2, 7, 4), {"enable_gqa": True}),
    "two dimensions": ((5, 4), (7, 4), {"attn_mask": SEEN}),
    "three": ((6, 5, 4), (6, 7, 4), {"attn_mask": draw(6, 5, 7)}),
    "three, one mask": ((6, 5, 4), (6, 7, 4), {"attn_mask": draw(1, 5, 7)}),
    "five": ((2, 2, 3, 5, 4), (2, 2, 3, 7, 4), {"attn_mask": draw(2, 1, 3, 1, 7)}),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("queries", "keys", "terms"), FORMS.values(), ids=FORMS)
def test_weights_and_their_gradients_in_every_form(queries, keys, terms):
    torch.manual_seed(3)
    q, k, v = draw(*queries).requires_grad_(), draw(*keys), draw(*keys[:-1], 6)
    model, direction = Calls(3, **terms), draw(*queries[:-1], 6)
    want = by_hand(q, k, terms)
    with capture_attention(model, detach=False) as maps:
        output = model(q, k, v)
    assert torch.equal(output, F.scaled_dot_product_attention(q, k, v, **terms))
    got = maps[""]
    assert got.ndim == 4
    assert_near(got.reshape(want.shape).detach(), want.detach())
    with torch.no_grad(), capture_attention(model, rows=[4, 1]) as some:
        model(q, k, v)
    assert_near(some[""], got[:, :, [4, 1]].detach())
    # Through an output that is made of the weights, so that autograd knows them.
    weights = want.detach().requires_grad_()
    if terms.get("enable_gqa"):
        v = v.repeat_interleave(3, 1)
    ((weights @ v) * direction).sum().backward()
    gradient = maps.gradients((output * direction).sum())[""]
    assert_near(gradient.reshape(want.shape), weights.grad)
    # And losses of the weights reach what made the queries.
    ours, theirs = (torch.autograd.grad(x.square().sum(), q)[0] for x in (got, want))
    assert_near(ours, theirs)


@pytest.mark.usefixtures("float64")
def test_heads_and_samples_in_one_dimension():
    class Outer(nn.Module):
        def __init__(self, num_heads: int | None) -> None:
            super().__init__()
            self.inner = Calls(num_heads)

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(draw(6, 5, 4))

    for num_heads, batch, shape in (
        (3, 2, (2, 3)),
        (None, 2, (2, 3)),
        (1, 2, (6, 1)),  # windows, say
        (5, 6, (6, 1)),
    ):
        model = Outer(num_heads)
        with capture_attention(model) as maps:
            model(draw(batch, 3, 7, 9))
        assert maps["inner"].shape[:2] == shape


class Stack(nn.Module):
    """Two blocks of others, the second one twice, with a norm between."""

    def __init__(self, *, checkpointed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second = (nn.MultiheadAttention(6, 2, batch_first=True) for _ in "ab")
        self.ours = MultiHeadAttention(6, 3)
        self.checkpointed = checkpointed

    def part(self, x: Tensor) -> Tensor:
        return x + self.first(x, x, x, need_weights=False)[0]

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.part, x, use_reentrant=False) if self.checkpointed else self.part(x)
        for _ in "ab":
            x = x + self.second(x, x, x, need_weights=False)[0]
        return self.ours(x)


@contextmanager
def quietly(model: nn.Module, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="second runs more than once")
        with capture_attention(model, **options) as maps:
            yield maps


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("detach", [True, False])
def test_checkpointing_and_blocks_used_twice(detach):
    plain, x = Stack(), draw(2, 5, 6)
    with quietly(plain) as want:
        plain(x).sum().backward()
    model = Stack(checkpointed=True)
    with quietly(model, detach=detach) as maps:
        model(x).sum().backward()
        assert {name: len(runs) for name, runs in maps.runs.items()} == {
            "first": 1,
            "second": 2,
            "ours": 1,
        }
        for name, weights in maps.items():
            assert_near(weights.detach(), want[name])
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert_near(ours.grad + 1, theirs.grad + 1)


def test_captures_in_one_another_and_in_threads():
    model, x = Stack().eval(), torch.randn(2, 5, 6)
    with quietly(model) as outer:
        with quietly(model, layers="first", rows=[3]) as inner:
            model(x)
        other = threading.Thread(target=lambda: model.first(x[:1], x[:1], x[:1]))
        other.start()
        other.join()
    assert list(inner) == ["first"]
    assert sorted(outer) == ["first", "ours", "second"]
    assert torch.equal(outer["first"][:, :, [3]], inner["first"])


def test_compiled_parts_run_as_written():
    torch._dynamo.reset()
    model, x = Stack().eval(), torch.randn(2, 5, 6)
    with quietly(model) as want:
        before = model(x)
    model.compile(backend="aot_eager")
    model(x)
    with quietly(model) as maps:
        assert torch.equal(model(x), before)
    assert all(torch.equal(maps[name], want[name]) for name in want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_and_in_half_precision(dtype):
    model, x = Stack().eval(), torch.randn(2, 5, 6)
    with quietly(model) as want:
        model(x)
    with torch.autocast("cpu", dtype):
        before = model(x)
        with quietly(model) as maps:
            assert torch.equal(model(x), before)
    for name, weights in want.items():
        assert (maps[name].float() - weights).abs().max() < 16 * torch.finfo(dtype).eps


def test_an_interrupt_leaves_nothing_behind():
    from torch.nn.modules import module as hooks

    def stop(*_):
        raise KeyboardInterrupt

    model = nn.Sequential(nn.TransformerEncoderLayer(6, 2, 7, batch_first=True)).eval()
    x = torch.randn(2, 5, 6)
    with torch.no_grad():
        before = model(x)
    layer = nn.TransformerEncoderLayer(6, 2, 7, batch_first=True, activation=torch.tanh)
    broken = nn.Sequential(layer).eval()
    layer.linear1.forward = stop
    with pytest.raises(KeyboardInterrupt), torch.no_grad(), capture_attention(broken):
        broken(x)
    assert not hooks._has_any_global_hook()
    assert torch.overrides._len_torch_function_stack() == 0
    with torch.no_grad():
        assert torch.equal(model(x), before)
        with capture_attention(model) as maps:
            model(x)
    assert maps["0.self_attn"].shape == (2, 2, 5, 5)


def test_rows_that_a_layer_does_not_have_are_refused_by_its_name():
    message = r"2: rows must lie in 0\.\.2, got \[4\]; layers= chooses blocks"
    model = nn.Sequential(Calls(), Half(), Calls())
    with pytest.raises(ValueError, match=message), capture_attention(model, rows=[4]):
        model(torch.randn(2, 3, 6, 4))
    with capture_attention(model, "0", rows=[4]) as maps:
        model(torch.randn(2, 3, 6, 4))
    assert maps["0"].shape == (2, 3, 1, 6)


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, ::2]


@pytest.mark.parametrize(
    "softmax",
    [
        lambda x: torch.softmax(input=x, dim=-1),
        lambda x: torch.softmax(x, 2),
        lambda x: x.softmax(dim=2),
        lambda x: F.softmax(dim=-1, input=x),
        lambda x: F.softmax(x, dim=-1, dtype=torch.float64),
        nn.Softmax(-1),
    ],
)
def test_every_spelling_of_a_softmax(softmax):
    class SomeAttention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + softmax(x @ x.mT).to(x) @ x.softmax(1)  # the last: over no keys

    model, x = SomeAttention(), torch.randn(2, 5, 3)
    with capture_attention(model) as maps:
        model(x)
    assert torch.equal(maps[""][:, 0], softmax(x @ x.mT))
    assert len(maps.runs[""]) == 1


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_said():
    parts = [torch.randn(3, 2, 4), torch.randn(5, 2, 4)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged).transpose(1, 2)
    model = nn.Sequential(Calls())
    message = "0: attention of nested tensors is not looked into"
    with (
        pytest.raises(ValueError, match="showed no attention"),
        pytest.warns(UserWarning, match=message),
        capture_attention(model),
    ):
        model(nested)


def test_a_grid_can_be_given():
    model, tokens = Calls(), torch.randn(2, 3, 16, 4)
    with capture_attention(model) as maps:
        model(tokens)
    assert not maps.layout
    with capture_attention(model, grid=(3, 5)) as maps:
        model(tokens)
    assert maps.on_grid("").shape == (2, 3, 16, 3, 5)
    assert maps.layout[""].num_prefix_tokens == 1

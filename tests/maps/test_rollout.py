"""Rollout and relevance through layers, against closed forms."""

import pytest
import torch
from oracles import assert_near
from torch import Tensor, nn

from cvattn import VisionTransformer
from cvattn.core import MultiHeadAttention
from cvattn.maps import attention_relevance, attention_rollout, capture_attention


def rows(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64).softmax(-1)


def test_two_layers_roll_out_to_their_closed_form():
    first, second = rows(2, 3, 7, 7), rows(2, 3, 7, 7)
    eye = torch.eye(7, dtype=torch.float64)
    one = 0.5 * (first.mean(1) + eye)
    two = 0.5 * (second.mean(1) + eye)
    found = attention_rollout({"layers.0": first, "layers.1": second})
    assert_near(found, two @ one)
    assert_near(found.sum(-1), torch.ones(2, 7, dtype=torch.float64))
    weighted = attention_rollout({"a": first, "b": second}, residual=0.2)
    mixed = [0.2 * eye + 0.8 * w.mean(1) for w in (first, second)]
    assert_near(weighted, mixed[1] @ mixed[0])


def test_a_token_that_sees_nothing_keeps_itself():
    weights = rows(1, 2, 5, 5)
    weights[:, :, 3] = 0.0
    assert attention_rollout({"a": weights})[0, 3].tolist() == [0.0, 0.0, 0.0, 1.0, 0.0]


def test_rollout_of_a_vit_finds_the_only_patch_that_its_class_token_hears():
    """Two layers: the first copies the planted patch to its neighbour, the second reads that."""
    planted = torch.eye(10)
    planted[5] = torch.eye(10)[7]  # token 5 looks at 7
    reading = torch.eye(10)
    reading[0] = torch.eye(10)[5]  # the class token looks at 5
    maps = {"0": planted[None, None], "1": reading[None, None]}
    row = attention_rollout(maps)[0, 0, 1:].unflatten(0, (3, 3))
    assert row[1, 1] == pytest.approx(0.25)  # 5 itself
    assert row[2, 0] == pytest.approx(0.25)  # 7, through 5
    assert row.sum() == pytest.approx(0.5)  # and half of it is the class token's own

    vit = VisionTransformer(
        5, image_size=(6, 10), patch_size=2, pool="cls", embed_dim=12, num_heads=3, num_layers=2
    )
    with torch.no_grad(), capture_attention(vit) as captured:
        vit(torch.randn(2, 3, 6, 10))
    assert attention_rollout(captured).shape == (2, 16, 16)


class Two(nn.Module):
    """z + A V z, twice, with weights that are given: linear in z and in each A. One channel a head.

    As biases of otherwise equal scores, so that weights are constants of the pass.
    """

    def __init__(self, weights: list[Tensor], values: list[list[float]]) -> None:
        super().__init__()
        self.biases = [each.log() for each in weights]
        self.layers = nn.ModuleList(MultiHeadAttention(2, 2, bias=False) for _ in weights)
        for layer, value in zip(self.layers, values, strict=True):
            nn.init.zeros_(layer.q_proj.weight)
            layer.v_proj.weight.data = torch.tensor(value).diag()
            layer.out_proj.weight.data = torch.eye(2)

    def forward(self, z: Tensor) -> Tensor:
        for layer, bias in zip(self.layers, self.biases, strict=True):
            z = z + layer(z, attn_bias=bias)
        return z


@pytest.fixture
def linear():
    """maps and gradients of a score of Two, and what they are by hand: A and dA, layer by layer."""
    weights = [rows(3, 2, 5, 5), rows(3, 2, 5, 5)]
    values, read = [[0.7, -1.3], [1.1, 0.4]], [0.9, -0.6]
    z = torch.randn(3, 5, 2)
    model = Two(weights, values)
    with capture_attention(model, detach=False) as maps:
        score = (model(z)[:, 0] * torch.tensor(read)).sum()
    first, second = (torch.zeros(3, 2, 5, 5) for _ in range(2))
    for b in range(3):
        for h in range(2):
            (v, u), r = (values[0][h], values[1][h]), read[h]
            between = z[b, :, h] + v * weights[0][b, h] @ z[b, :, h]
            second[b, h, 0] = r * u * between  # only token 0 is read
            for i in range(5):
                reaches = (i == 0) + u * weights[1][b, h, 0, i]
                first[b, h, i] = r * reaches * v * z[b, :, h]
    for found, want in zip(maps.gradients(score).values(), (first, second), strict=True):
        assert_near(found, want)
    return maps, maps.gradients(score), weights, [first, second]


def positive_mean(weights: Tensor, gradients: Tensor) -> Tensor:
    """(B, N, N), number by number."""
    total = torch.zeros_like(weights[:, 0])
    for head in range(weights.shape[1]):
        product = weights[:, head] * gradients[:, head]
        total += torch.where(product > 0, product, 0.0)
    return total / weights.shape[1]


@pytest.mark.usefixtures("float64")
def test_relevance_of_a_linear_network(linear):
    maps, gradients, weights, slopes = linear
    relevance = torch.eye(5).expand(3, 5, 5)
    for a, slope in zip(weights, slopes, strict=True):
        relevance = relevance + positive_mean(a, slope) @ relevance
    found = attention_relevance(maps, gradients)
    assert_near(found.detach(), relevance)
    # Token 0 alone is read: what others took in the last layer counts for nothing.
    (a, b), eye = map(positive_mean, weights, slopes), torch.eye(5)
    assert b[:, 1:].abs().max() == 0
    assert_near(found.detach()[:, 0], ((eye + b) @ (eye + a))[:, 0])
    assert_near(found.detach()[:, 1:], (eye + a)[:, 1:])


@pytest.mark.usefixtures("float64")
def test_gradient_weighted_rollout_of_a_linear_network(linear):
    maps, gradients, weights, slopes = linear
    mixed = []
    for a, slope in zip(weights, slopes, strict=True):
        layer = positive_mean(a, slope)
        total = layer.sum(-1, keepdim=True)
        share = torch.where(total > 0, layer / total, torch.zeros(()))
        layer = 0.7 * share + 0.3 * torch.eye(5)
        mixed.append(layer / layer.sum(-1, keepdim=True))
    found = attention_rollout(maps, gradients, residual=0.3).detach()
    assert_near(found, mixed[1] @ mixed[0])
    assert_near(found.sum(-1), torch.ones(3, 5))
    assert (found - attention_rollout(maps, residual=0.3)).abs().max() > 0.05
    larger = {name: 1e3 * each for name, each in gradients.items()}
    assert_near(attention_rollout(maps, larger, residual=0.3).detach(), found)  # only where it is


@pytest.mark.usefixtures("float64")
def test_relevance_is_of_the_answer_that_was_asked_for():
    """Each class is read from one token by way of another: its map has that one and no more."""
    to_three, to_one = torch.full((1, 2, 5, 5), 1e-9), torch.full((1, 2, 5, 5), 1e-9)
    to_three[:, 0, 2, 3] = to_one[:, 1, 2, 1] = 1.0  # token 2: head 0 takes from 3, head 1 from 1
    to_three[:, 1] = to_one[:, 1]
    to_three[:, :, 0, 0] = 1.0  # and the one that is read later looks at itself
    last = torch.full((1, 2, 5, 5), 1e-9)
    last[:, :, 0, 2] = 1.0
    model = Two([to_three, last], [[1.0, 1.0], [1.0, 1.0]])
    with capture_attention(model, detach=False) as maps:
        classes = model(torch.ones(1, 5, 2))[:, 0]
    for channel, token in ((0, 3), (1, 1)):
        for through in (attention_relevance, attention_rollout):
            row = through(maps, maps.gradients(classes[0, channel]))[0, 0].detach()
            assert row[1:].topk(2).indices.add(1).sort().values.tolist() == sorted([2, token])
            other = 4 - token
            assert row[other] < 1e-6 * row[token]


def test_half_precision_is_multiplied_in_float32():
    maps = {str(i): rows(1, 2, 5, 5).half() for i in range(3)}
    slopes = {name: torch.full_like(weights, 3e-4) for name, weights in maps.items()}
    for found in (attention_relevance(maps, slopes), attention_rollout(maps, slopes)):
        assert found.dtype == torch.float32
    exact = [m.double() for m in maps.values()]
    slope = slopes["0"].double().max()  # as half precision has it
    want = torch.eye(5, dtype=torch.float64)
    for weights in exact:
        want = want + (slope * weights).mean(1) @ want
    apart = (attention_relevance(maps, slopes).double() - want).abs().max()
    assert apart <= 8 * torch.finfo(torch.float32).eps


def zeros(*shape: int) -> dict[str, Tensor]:
    return {"a": torch.zeros(shape)}


REFUSED = {
    "nothing": ({}, "no maps"),
    "some rows": (zeros(1, 2, 1, 7), r"a: weights \(1, 2, 1, 7\) cannot be rolled out"),
    "sizes": (zeros(1, 2, 7, 7) | {"b": torch.zeros(1, 2, 5, 5)}, r"b: weights \(1, 2, 5, 5\)"),
    "batches": (zeros(1, 2, 7, 7) | {"b": torch.zeros(3, 2, 7, 7)}, r"b: weights \(3, 2, 7, 7\)"),
    "one head lost": (zeros(2, 7, 7), r"to the same N, \(B, heads, N, N\)"),
}


@pytest.mark.parametrize("through", [attention_rollout, attention_relevance])
@pytest.mark.parametrize(("maps", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(through, maps, message):
    with pytest.raises(ValueError, match=message):
        through(maps, maps)
    if through is attention_rollout:
        with pytest.raises(ValueError, match=message):
            through(maps)


@pytest.mark.parametrize("through", [attention_rollout, attention_relevance])
def test_gradients_of_something_else(through):
    maps = zeros(1, 2, 7, 7)
    with pytest.raises(ValueError, match="gradients of b, weights of a; expected both"):
        through(maps, {"b": maps["a"]})
    with pytest.raises(ValueError, match=r"a: gradients \(1, 2, 1, 7\) of weights"):
        through(maps, zeros(1, 2, 1, 7))


@pytest.mark.parametrize("residual", [-0.1, 1.0])
def test_shares_of_the_identity_that_are_none(residual):
    with pytest.raises(ValueError, match="residual="):
        attention_rollout(zeros(1, 2, 7, 7), residual=residual)


def test_a_layer_that_ran_twice_is_refused():
    """The maps have its last run only; all of them, in order, can be rolled out."""
    layer = MultiHeadAttention(6, 3).double()
    model = nn.Sequential(layer, layer)
    with pytest.warns(UserWarning, match="more than once"), capture_attention(model) as maps:
        model(torch.randn(2, 5, 6, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"0: ran more than once in the pass"):
        attention_rollout(maps)
    runs = dict(enumerate(maps.runs["0"]))
    eye = torch.eye(5, dtype=torch.float64)
    first, second = (0.5 * (run.mean(1) + eye) for run in runs.values())
    assert_near(attention_rollout({str(i): run for i, run in runs.items()}), second @ first)


@pytest.mark.usefixtures("float64")
def test_what_it_takes_depends_on_more_than_the_answer():
    """A constant in all values, taken off behind: the same network to every caller, other heat."""
    block, x = MultiHeadAttention(6, 2), torch.randn(2, 5, 6)

    def looked() -> tuple[Tensor, Tensor]:
        with capture_attention(block, detach=False) as maps:
            output = block(x)
        return output.detach(), attention_relevance(maps, maps.gradients(output.sum())).detach()

    output, relevance = looked()
    with torch.no_grad():
        block.v_proj.bias += 3.0
        block.out_proj.bias -= block.out_proj.weight @ torch.full((6,), 3.0)
    again, other = looked()
    assert_near(again, output)
    assert (other - relevance).abs().max() > 0.1

"""from_self_attn and from_biggan: outputs of the two blocks in the wild, written here again."""

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_accurate, assert_near, fill, in_float64, outcome
from torch import nn
from torch.nn.utils import spectral_norm

from cvattn.blocks import SelfAttention2d
from cvattn.weights import from_biggan, from_self_attn

pytestmark = pytest.mark.filterwarnings("ignore:.*spectral_norm.*deprecated:FutureWarning")


class SelfAttn(nn.Module):
    """The common block: q and k at C/8, v at C, the energies not scaled."""

    def __init__(self, channels, *, normalise=lambda layer: layer, bias=True, gamma_shape=(1,)):
        super().__init__()
        for name, out in (("query", channels // 8), ("key", channels // 8), ("value", channels)):
            setattr(self, f"{name}_conv", normalise(nn.Conv2d(channels, out, 1, bias=bias)))
        self.gamma = nn.Parameter(torch.zeros(gamma_shape))

    def forward(self, x):
        q, k, v = (getattr(self, f"{n}_conv")(x).flatten(2) for n in ("query", "key", "value"))
        weights = torch.einsum("bci,bcj->bij", q, k).softmax(-1)
        return x + self.gamma * torch.einsum("bij,bcj->bci", weights, v).view_as(x)


class NormalisedConv(nn.Conv2d):
    """A 1x1 convolution divided by its largest singular value, one power step from ``u0``."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, 1, bias=False)
        self.register_buffer("u0", torch.randn(1, outputs))
        self.register_buffer("sv0", torch.ones(1))

    def forward(self, x):
        matrix = self.weight.flatten(1)
        v = F.normalize(self.u0 @ matrix)
        u = F.normalize(v @ matrix.T)
        return F.conv2d(x, self.weight / (v @ matrix.T @ u.T).squeeze())


class BigGANAttention(nn.Module):
    """theta, phi, g, o: keys and values max-pooled, v at C/2, gamma without dimensions."""

    def __init__(self, channels, conv=lambda i, o: nn.Conv2d(i, o, 1, bias=False)):
        super().__init__()
        self.theta, self.phi = conv(channels, channels // 8), conv(channels, channels // 8)
        self.g, self.o = conv(channels, channels // 2), conv(channels // 2, channels)
        self.gamma = nn.Parameter(torch.tensor(0.0))

    def forward(self, x):
        q, k = self.theta(x).flatten(2), F.max_pool2d(self.phi(x), 2).flatten(2)
        v = F.max_pool2d(self.g(x), 2).flatten(2)
        weights = torch.einsum("bci,bcj->bij", q, k).softmax(-1)
        attended = torch.einsum("bij,bcj->bci", weights, v).unflatten(2, x.shape[2:])
        return self.gamma * self.o(attended) + x


CASES = {
    "common": (from_self_attn, lambda: SelfAttn(24)),
    "common, 0-d gamma, no biases": (
        from_self_attn,
        lambda: SelfAttn(24, bias=False, gamma_shape=()),
    ),
    "common, spectral norm": (from_self_attn, lambda: SelfAttn(24, normalise=spectral_norm)),
    "biggan": (from_biggan, lambda: BigGANAttention(24)),
    "biggan, spectral norm": (from_biggan, lambda: BigGANAttention(24, NormalisedConv)),
}
either = pytest.mark.parametrize(("take", "make"), CASES.values(), ids=CASES.keys())


def random_block(make):
    block = fill(make())
    with torch.no_grad():
        block.gamma.fill_(-0.7)
        for _ in range(20):  # spectral norms come to the weights that were drawn
            block(torch.zeros(1, 24, 2, 2))
    return block.eval()


@either
def test_same_outputs_and_gradients(take, make):
    theirs = random_block(make)
    ours = take(theirs.state_dict())
    assert isinstance(ours, SelfAttention2d)
    assert ours.training
    assert ours.gamma.shape == (1,)
    ours.eval()
    x = torch.randn(3, 24, 6, 10)
    assert (theirs(x) - x).abs().max() > 0.1, "the block does nothing: a comparison of x with x"
    assert_accurate(outcome(ours, x)[:2], lambda *given: outcome(*given)[:2], theirs, x)
    theirs, x = in_float64((theirs, x))
    *want, wanted = outcome(theirs, x)
    *got, found = outcome(take(theirs.state_dict()).eval(), x)
    for each, other in zip(got, want, strict=True):
        assert_near(each, other)
    assert_near(found["gamma"].sum(), wanted["gamma"].sum())  # of another shape in each block


@either
def test_out_of_a_larger_state_dict(take, make):
    theirs = random_block(make)
    network = nn.ModuleDict({"conv": nn.Conv2d(3, 24, 3), "blocks": nn.Sequential(theirs)})
    before = torch.get_rng_state()
    ours = take(network.double().state_dict(), prefix="blocks.0.").eval()
    assert torch.equal(torch.get_rng_state(), before)
    assert {p.dtype for p in ours.parameters()} == {torch.float64}
    x = torch.randn(2, 24, 4, 14, dtype=torch.float64)
    assert_near(ours(x), theirs(x))
    memory = {tensor.data_ptr() for tensor in theirs.state_dict().values()}
    assert not memory & {tensor.data_ptr() for tensor in ours.state_dict().values()}
    with pytest.raises(ValueError, match=r"such a block is at prefix='blocks\.0\.'$"):
        take(network.state_dict())


@pytest.mark.parametrize("spectral", [True, False])
def test_what_comes_out_is_the_form_of_that_name(spectral):
    """Same keys as the preset's, so that either loads the other's state."""
    theirs = random_block(CASES["biggan, spectral norm" if spectral else "biggan"][1])
    ours = from_biggan(theirs.state_dict())
    preset = SelfAttention2d.biggan(24, spectral_norm=spectral)
    preset.load_state_dict(ours.state_dict())
    x = torch.randn(2, 24, 5, 7)  # odd maps too, which theirs would cut
    assert torch.equal(preset.eval()(x), ours.eval()(x))


def test_training_goes_on():
    ours = from_biggan(random_block(CASES["biggan, spectral norm"][1]).state_dict())
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    optimiser = torch.optim.SGD(ours.parameters(), lr=0.1)
    ours(torch.randn(2, 24, 4, 6)).square().sum().backward()
    optimiser.step()
    same = {name for name, value in ours.state_dict().items() if torch.equal(value, before[name])}
    assert {name for name in same if not name.endswith("._u")} == set()  # u had its half step


def renamed(state, old, new):
    return {key.replace(old, new): value for key, value in state.items()}


def without(state, key):
    return {name: value for name, value in state.items() if name != key}


COMMON, BIGGAN = SelfAttn(24).state_dict(), BigGANAttention(24).state_dict()
SPECTRAL = BigGANAttention(24, NormalisedConv).state_dict()
REFUSED = {
    "missing": (from_self_attn, without(COMMON, "key_conv.weight"), "^key_conv.weight is missing$"),
    "misspelt": (
        from_self_attn,
        renamed(COMMON, "gamma", "gama"),
        r"gamma is missing; gama is unknown \(did you mean gamma\?\)",
    ),
    "unknown": (
        from_self_attn,
        COMMON | {"sigma": torch.zeros(1)},
        r"^sigma is unknown \(did you mean gamma",
    ),
    "half of the biases": (
        from_self_attn,
        without(COMMON, "value_conv.bias"),
        "value_conv.bias is",
    ),
    "the other form": (from_self_attn, BIGGAN, "query_conv.weight is missing.*theta.weight is unk"),
    "no record": (from_biggan, without(SPECTRAL, "o.u0"), "o.u0 is missing"),
    "3x3": (
        from_biggan,
        BIGGAN | {"g.weight": torch.zeros(12, 24, 3, 3)},
        r"g.weight has the shape \(12, 24, 3, 3\); expected that of a 1x1",
    ),
    "gammas": (from_biggan, BIGGAN | {"gamma": torch.zeros(24)}, r"gamma has the shape \(24,\)"),
    "widths": (
        from_self_attn,
        COMMON | {"key_conv.weight": torch.zeros(5, 24, 1, 1)},
        "do not fit each other.*key.weight",
    ),
    "values": (
        from_self_attn,
        COMMON | {"value_conv.weight": torch.zeros(5, 24, 1, 1)},
        "do not fit each other.*value.weight",
    ),
    "empty": (from_biggan, {}, "gamma is missing; theta.weight is missing"),
}


@pytest.mark.parametrize(("take", "state", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_by_name(take, state, message):
    with pytest.raises(ValueError, match="(?s)" + message):
        take(state)

"""replace_attention on networks with SAGAN's and BigGAN's blocks, and on what must not change."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_near, fill
from replaced import assert_same_network, replaced
from torch import nn
from torch.nn.utils import spectral_norm

import cvattn
from cvattn import MultiHeadAttention, SelfAttention2d

C = 16
sn_warning = "ignore:.*spectral_norm.*deprecated:FutureWarning"
pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.filterwarnings(sn_warning)]


class SelfAttn(nn.Module):
    """As it is copied around, with the softmax as a module; what it returns differs by author."""

    def __init__(self, channels=C, *, pair=False, normalise=lambda layer: layer):
        super().__init__()
        self.pair = pair
        for name, out in (("query", channels // 8), ("key", channels // 8), ("value", channels)):
            setattr(self, f"{name}_conv", normalise(nn.Conv2d(channels, out, 1)))
        self.gamma = nn.Parameter(torch.zeros(1))
        self.softmax = nn.Softmax(dim=-1)

    def scores(self, q, k):
        return torch.einsum("bci,bcj->bij", q, k)

    def forward(self, x):
        q, k, v = (getattr(self, f"{n}_conv")(x).flatten(2) for n in ("query", "key", "value"))
        weights = self.softmax(self.scores(q, k))
        out = x + self.gamma * torch.einsum("bij,bcj->bci", weights, v).view_as(x)
        return (out, weights) if self.pair else out


class Scaled(SelfAttn):
    """The same parts, other scores."""

    def scores(self, q, k):
        return super().scores(q, k) / q.shape[1] ** 0.5


class Masked(SelfAttn):
    def forward(self, x, mask):
        return super().forward(x * mask)


class BigGANAttention(nn.Module):
    """Given the class, which it ignores."""

    def __init__(self, uses_class=False):
        super().__init__()
        self.uses_class = uses_class
        self.theta, self.phi = (nn.Conv2d(C, C // 8, 1, bias=False) for _ in range(2))
        self.g, self.o = nn.Conv2d(C, C // 2, 1, bias=False), nn.Conv2d(C // 2, C, 1, bias=False)
        self.gamma = nn.Parameter(torch.tensor(0.0))

    def forward(self, x, y=None):
        q, k = self.theta(x).flatten(2), F.max_pool2d(self.phi(x), 2).flatten(2)
        v = F.max_pool2d(self.g(x), 2).flatten(2)
        weights = torch.einsum("bci,bcj->bij", q, k).softmax(-1)
        attended = torch.einsum("bij,bcj->bci", weights, v).unflatten(2, x.shape[2:])
        return self.gamma * self.o(attended) + x + (y if self.uses_class else 0)


class Network(nn.Module):
    """One block in two places, another deeper, further inputs and outputs."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, C, 3, padding=1)
        self.first = SelfAttn()
        self.again = self.first
        self.deep = nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleList([BigGANAttention()])])})
        self.last = SelfAttn(pair=True, normalise=spectral_norm)

    def forward(self, x):
        x = self.again(self.first(self.stem(x)).tanh()).tanh()
        x = self.deep["blocks"][0][0](x, torch.zeros(()))
        x, weights = self.last(x.tanh())
        return (x.flatten(2) @ weights.mT).view_as(x)  # transposed ones would show


def acting(network):
    fill(network)
    with torch.no_grad():
        for module in network.modules():
            if hasattr(module, "gamma"):
                module.gamma.fill_(-0.7)
        for _ in range(100):  # the spectral norms converge to those of the weights that were drawn
            network.last(torch.zeros(1, C, 1, 1))
    return network.eval()


def test_same_outputs_and_gradients():
    theirs = acting(Network())
    before = torch.get_rng_state()
    ours = replaced(theirs)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_network(theirs, ours, lambda net, x: net(x), torch.randn(2, 3, 6, 8))
    assert ours.first is ours.again, "one module in two places stays one"
    assert type(ours.first) is SelfAttention2d
    assert len([m for m in ours.modules() if isinstance(m, SelfAttention2d)]) == 3


def test_in_training_too():
    """Where the power iterations have converged: their steps are not in the same order."""
    theirs = acting(Network()).train()
    ours = replaced(theirs)
    assert all(module.training for module in ours.modules())
    x = torch.randn(2, 3, 6, 8)
    for _ in range(3):
        assert_near(ours(x), theirs(x))


def test_what_is_kept():
    theirs = acting(Network()).float()
    theirs.first.key_conv.weight.requires_grad_(False)
    theirs.last.value_conv.weight_orig.requires_grad_(False)
    theirs.deep.requires_grad_(False)
    theirs.train()
    theirs.first.eval()
    theirs.deep["blocks"].eval()
    ours = replaced(theirs)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert {name for name, p in ours.named_parameters() if not p.requires_grad} == {
        "first.key.weight",
        "last.attention.value.parametrizations.weight.original",
        *(
            f"deep.blocks.0.0.attention.{name}"
            for name in ("gamma", *(f"{n}.weight" for n in ("query", "key", "value", "proj")))
        ),
    }
    assert not any(part.training for part in ours.first.modules())
    assert not any(part.training for part in ours.deep["blocks"].modules())
    assert all(part.training for part in ours.last.modules())


def test_half_precision():
    theirs = nn.Sequential(fill(SelfAttn())).to(torch.bfloat16).eval()
    theirs[0].gamma.data.fill_(0.5)
    ours = replaced(theirs)
    x = torch.randn(2, C, 5, 7)
    exact = copy.deepcopy(theirs).double()(x.bfloat16().double())
    errors = [(net(x.bfloat16()).double() - exact).abs().max() for net in (ours, theirs)]
    assert errors[0] <= 2 * errors[1]


@pytest.mark.parametrize("form", ["compiled", "exported", "copied"])
def test_other_forms(form):
    ours = replaced(acting(Network()))
    x = torch.randn(2, 3, 6, 8)
    if form == "compiled":
        other = torch.compile(ours, backend="eager", fullgraph=True)
    elif form == "exported":
        other = torch.export.export(ours, (x,)).module()
    else:
        other = copy.deepcopy(Network()).eval()
        cvattn.replace_attention(other)
        other.load_state_dict(ours.state_dict())
    assert_near(other(x), ours(x))


def test_what_stays_is_said():
    theirs = nn.Sequential(SelfAttn(), Scaled(), nn.MultiheadAttention(4, 2))
    theirs.append(MultiHeadAttention(4, 2))
    with pytest.warns(UserWarning, match="stays as it is") as caught:
        cvattn.replace_attention(theirs)
    assert len(caught) == 1
    assert str(caught[0].message) == (
        "attention that stays as it is: 1 (Scaled has the parts of a SAGAN block and gives "
        "something else than one); not known: 2 (MultiheadAttention)"
    )
    assert caught[0].filename == __file__
    assert [type(each) for each in theirs] == [
        SelfAttention2d,
        Scaled,
        nn.MultiheadAttention,
        MultiHeadAttention,
    ]


def test_by_name_and_no_warning_for_the_others():
    theirs = nn.ModuleDict({"a1": SelfAttn(), "a2": SelfAttn(), "b": Scaled()})
    ours = replaced(theirs, layers="a?")
    assert [type(each) for each in ours.values()] == [SelfAttention2d, SelfAttention2d, Scaled]
    ours = replaced(theirs, layers=["a2"])
    assert [type(each) for each in ours.values()] == [SelfAttn, SelfAttention2d, Scaled]


def with_hook(register):
    block = SelfAttn()
    getattr(block, f"register_{register}")(lambda *_: None)
    return block


def with_own_forward():
    block = SelfAttn()
    block.value_conv.forward = lambda x: x
    return block


def sharing():
    block, other = SelfAttn(), nn.Conv2d(C, C, 1)
    block.value_conv.weight = other.weight
    return nn.ModuleDict({"block": block, "other": other})


def tied():
    block = SelfAttn()
    block.key_conv.weight = block.query_conv.weight
    return block


def with_shared_layer():
    block = SelfAttn()
    return nn.ModuleDict({"block": block, "other": nn.Sequential(block.query_conv)})


def in_a_list():
    network = nn.ModuleDict({"block": SelfAttn()})
    network.every = [network["block"]]
    return network


def compiled():
    block = SelfAttn()
    block.compile(backend="eager")
    return block


REASONS = {
    "other scores": (Scaled, "Scaled has the parts of a SAGAN block and gives something else"),
    "other inputs": (Masked, r"its forward takes \(x, mask\); expected \(x\), or"),
    "the class": (lambda: BigGANAttention(uses_class=True), "a trial on a small map failed"),
    "forward hook": (lambda: with_hook("forward_hook"), "it has hooks or a forward of its own"),
    "pre-hook": (lambda: with_hook("forward_pre_hook"), "it has hooks or a forward of its own"),
    "backward hook": (lambda: with_hook("full_backward_hook"), "it has backward hooks"),
    "own forward": (with_own_forward, "value_conv has hooks or a forward of its own"),
    "shared weight": (sharing, "value_conv.weight is shared with another layer"),
    "tied": (tied, "conv.weight is shared with another layer"),
    "shared layer": (with_shared_layer, "query_conv is shared with another part of the model"),
    "in a list": (in_a_list, "it is also in a plain list"),
    "meta": (lambda: SelfAttn().to("meta"), "gamma is on the meta device"),
    "compiled": (compiled, "is compiled; change the module that it was made from"),
}


@pytest.mark.parametrize(("make", "reason"), REASONS.values(), ids=REASONS.keys())
def test_left_with_the_reason_and_refused_by_name(make, reason):
    inner = make()
    inner = inner if isinstance(inner, nn.ModuleDict) else nn.ModuleDict({"block": inner})
    theirs = nn.ModuleDict({"first": SelfAttn(), "net": inner})
    parts = list(theirs.modules())
    with pytest.raises(ValueError, match=rf"^net\.block cannot be replaced: .*{reason}"):
        cvattn.replace_attention(theirs, layers=["first", "net.block"])
    assert list(theirs.modules()) == parts, "all or nothing"
    with pytest.warns(UserWarning, match=rf"stays as it is: net\.block \(.*{reason}"):
        cvattn.replace_attention(theirs)
    assert type(theirs["first"]) is SelfAttention2d
    assert theirs["net"]["block"] is inner["block"]


NOTHING = {
    "no attention": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1)), {}, "has no attention to replace$"),
    "only others": (
        lambda: nn.Sequential(nn.MultiheadAttention(4, 2)),
        {},
        r"no attention to replace; not known: 0 \(MultiheadAttention\)",
    ),
    "ours already": (lambda: nn.Sequential(SelfAttention2d(C)), {}, "has no attention to replace$"),
    "itself": (SelfAttn, {}, "has no attention to replace"),
    "no such layer": (
        lambda: nn.ModuleDict({"attn": SelfAttn()}),
        {"layers": "atn"},
        "has no layer 'atn'; did you mean attn",
    ),
    "not attention": (
        lambda: nn.ModuleDict({"attn": SelfAttn(), "conv": nn.Conv2d(3, 4, 1)}),
        {"layers": ["attn", "conv"]},
        "conv is a Conv2d, which is no attention that is known",
    ),
    "lazy": (
        lambda: nn.Sequential(SelfAttn(), nn.LazyConv2d(3, 1)),
        {},
        "lazy layers",
    ),
    "wrapped": (lambda: torch.compile(nn.Sequential(SelfAttn())), {}, "the model is compiled"),
}


@pytest.mark.parametrize(("make", "options", "message"), NOTHING.values(), ids=NOTHING.keys())
def test_nothing_to_replace(make, options, message):
    theirs = make()
    parts = list(theirs.modules())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Lazy modules")
        with pytest.raises(ValueError, match=message):
            cvattn.replace_attention(theirs, **options)
    assert list(theirs.modules()) == parts


def test_the_transformers_of_others_are_named():
    transformers = pytest.importorskip("transformers", reason="pip install -e '.[peers]'")
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=8,
        patch_size=4,
    )
    theirs = nn.ModuleList([SelfAttn(), transformers.ViTModel(config, add_pooling_layer=False)])
    with pytest.warns(UserWarning, match=r"not known: 1\..*attention.*\(ViT.*Attention\)"):
        cvattn.replace_attention(theirs)

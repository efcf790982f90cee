"""State dicts of guided diffusion, CompVis and mmcv: outputs of their formulas, written again."""

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_near, fill, outcome
from torch import nn

from cvattn.blocks import SelfAttention2d
from cvattn.weights import from_compvis, from_guided_diffusion, from_mmseg

C = 64
pytestmark = pytest.mark.usefixtures("float64")


class Guided(nn.Module):
    """One convolution for q, k and v; both sides scaled by the fourth root of the width."""

    def __init__(self, heads, *, new_order):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = nn.GroupNorm(32, C)
        self.qkv, self.proj_out = nn.Conv1d(C, 3 * C, 1), nn.Conv1d(C, C, 1)

    def forward(self, x):
        tokens = x.flatten(2)
        qkv = self.qkv(self.norm(tokens))
        d = C // self.heads
        if self.new_order:
            q, k, v = (part.reshape(-1, d, part.shape[-1]) for part in qkv.split(C, dim=1))
        else:
            q, k, v = qkv.reshape(-1, 3 * d, qkv.shape[-1]).split(d, dim=1)
        weights = torch.einsum("nci,ncj->nij", q / d**0.25, k / d**0.25).softmax(-1)
        attended = torch.einsum("nij,ncj->nci", weights, v).reshape(tokens.shape)
        return (tokens + self.proj_out(attended)).view_as(x)


class CompVis(nn.Module):
    """One head, four 1x1 convolutions, scores divided by the root of C."""

    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(32, C, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(C, C, 1) for _ in range(4))

    def forward(self, x):
        normed = self.norm(x)
        q, k, v = (layer(normed).flatten(2) for layer in (self.q, self.k, self.v))
        weights = (q.mT @ k * C**-0.5).softmax(-1)
        return x + self.proj_out((v @ weights.mT).view_as(x))


class WithConv(nn.Module):
    """A convolution, named as mmcv names it, and a batch norm behind it or none."""

    def __init__(self, inputs, outputs, *, norm=False):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=not norm)
        self.bn = nn.BatchNorm2d(outputs) if norm else None

    def forward(self, x):
        return self.conv(x) if self.bn is None else self.bn(self.conv(x))


class NonLocal(nn.Module):
    """Embedded Gaussian; g and phi pooled if sub-sampled."""

    def __init__(self, *, norm=True, use_scale=True, sub_sample=False, width=C // 2):
        super().__init__()
        self.scale = width**-0.5 if use_scale else 1.0
        self.theta, self.phi, self.g = (WithConv(C, width) for _ in range(3))
        self.conv_out = WithConv(width, C, norm=norm)
        if sub_sample:
            self.g, self.phi = (
                nn.Sequential(each, nn.MaxPool2d((2, 2))) for each in (self.g, self.phi)
            )

    def forward(self, x):
        theta, phi, g = (layer(x).flatten(2) for layer in (self.theta, self.phi, self.g))
        weights = (torch.einsum("bci,bcj->bij", theta, phi) * self.scale).softmax(-1)
        attended = torch.einsum("bij,bcj->bci", weights, g).unflatten(2, x.shape[2:])
        return x + self.conv_out(attended)


CASES = {
    "guided, legacy": (
        lambda state, **at: from_guided_diffusion(state, num_heads=4, **at),
        lambda: Guided(4, new_order=False),
    ),
    "guided, new order": (
        lambda state, **at: from_guided_diffusion(
            state, num_head_channels=16, new_order=True, **at
        ),
        lambda: Guided(4, new_order=True),
    ),
    "compvis": (from_compvis, CompVis),
    "mmcv": (from_mmseg, NonLocal),
    "mmcv, no norm, no scale": (
        lambda state, **at: from_mmseg(state, use_scale=False, **at),
        lambda: NonLocal(norm=False, use_scale=False, width=24),
    ),
    "mmcv, sub-sampled": (
        lambda state, **at: from_mmseg(state, sub_sample=True, **at),
        lambda: NonLocal(sub_sample=True),
    ),
}
every = pytest.mark.parametrize(("take", "make"), CASES.values(), ids=CASES.keys())


def random_block(make):
    block = fill(make())
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return block


@every
@pytest.mark.parametrize("training", [False, True])
def test_same_outputs_and_gradients(take, make, training):
    theirs = random_block(make).train(training)
    ours = take(theirs.state_dict())
    assert isinstance(ours, SelfAttention2d)
    assert ours.training
    ours.train(training)
    x = torch.randn(3, C, 4, 6)
    want, slope, wanted = outcome(theirs, x)
    got, found, own = outcome(ours, x)
    assert_near(got, want)
    assert_near(found, slope)
    # Every weight of theirs is in ours: in other places and orders, so that their sums agree.
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    sums = [torch.stack([g.square().sum() for g in each.values()]).sum() for each in (own, wanted)]
    assert_near(*sums)


@every
def test_out_of_a_larger_state_dict(take, make):
    theirs = random_block(make).eval()
    network = nn.ModuleDict({"conv": nn.Conv2d(3, C, 3), "middle": nn.Sequential(theirs)})
    state = {key: value.float() for key, value in network.state_dict().items()}
    before = torch.get_rng_state()
    ours = take(state, prefix="middle.0.").eval()
    assert torch.equal(torch.get_rng_state(), before)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    memory = {tensor.data_ptr() for tensor in state.values()}
    assert not memory & {tensor.data_ptr() for tensor in ours.state_dict().values()}
    with pytest.raises(ValueError, match=r"such a block is at prefix='middle\.0\.'$"):
        take(state)


def test_a_norm_of_another_eps_would_show():
    """The two U-Net blocks differ in it."""
    theirs = random_block(CompVis).eval()
    x = 1e-3 * torch.randn(2, C, 3, 5)
    ours = from_compvis(theirs.state_dict()).eval()
    assert_near(ours(x), theirs(x))
    assert ours.norm.eps == 1e-6
    ours.norm.eps = 1e-5
    assert (ours(x) - theirs(x)).abs().max() > 1e-3


def test_what_the_original_has_not_ours_has_not():
    ours = from_mmseg(NonLocal().state_dict())
    assert ours.proj[0].bias is None
    assert set(ours.state_dict()) == {
        *(f"{layer}.{part}" for layer in ("query", "key", "value") for part in ("weight", "bias")),
        "proj.0.weight",
        *(f"proj.1.{part}" for part in nn.BatchNorm2d(1).state_dict()),
    }
    state = {k: v for k, v in NonLocal(norm=False).state_dict().items() if ".bias" not in k}
    assert not [name for name, _ in from_mmseg(state).named_parameters() if "bias" in name]


GUIDED, COMPVIS = Guided(4, new_order=False).state_dict(), CompVis().state_dict()
GAUSS = {k: v for k, v in NonLocal().state_dict().items() if not k.startswith(("theta", "phi"))}
REFUSED = {
    "no heads": (lambda: from_guided_diffusion(GUIDED), "num_heads=None and .*one of the two"),
    "both": (
        lambda: from_guided_diffusion(GUIDED, num_heads=4, num_head_channels=16),
        "one of the two",
    ),
    "none of them": (lambda: from_guided_diffusion(GUIDED, num_heads=0), "num_heads=0 and"),
    "a divisor": (lambda: from_guided_diffusion(GUIDED, num_heads=5), "num_heads=5.* 64 channels"),
    "wide heads": (
        lambda: from_guided_diffusion(GUIDED, num_head_channels=128),
        "num_head_channels=128.* 64 channels",
    ),
    "encoder_kv": (
        lambda: from_guided_diffusion(
            GUIDED | {"encoder_kv.weight": torch.ones(2 * C, 7, 1)}, num_heads=4
        ),
        "encoder_kv.weight is unknown",
    ),
    "widths": (
        lambda: from_guided_diffusion(
            GUIDED | {"qkv.weight": torch.ones(2 * C, C, 1)}, num_heads=4
        ),
        "qkv.weight has 128 outputs of 64 channels; expected 192",
    ),
    "groups": (lambda: from_compvis(COMPVIS, norm_groups=7), "norm of 7 groups does not divide"),
    "misspelt": (
        lambda: from_compvis({k.replace("proj_out", "projout"): v for k, v in COMPVIS.items()}),
        r"projout.weight is unknown \(did you mean proj_out.weight\?\)",
    ),
    "3x3": (
        lambda: from_compvis(COMPVIS | {"k.weight": torch.ones(C, C, 3, 3)}),
        r"k.weight has the shape \(64, 64, 3, 3\); expected that of a 1x1.*inputs, 1, 1\)",
    ),
    "sub-sampled": (
        lambda: from_mmseg(NonLocal(sub_sample=True).state_dict()),
        r"phi.conv.weight is missing.*phi.0.conv.weight is unknown",
    ),
    "not sub-sampled": (lambda: from_mmseg(NonLocal().state_dict(), sub_sample=True), "g.0.conv"),
    "gaussian": (lambda: from_mmseg(GAUSS), "theta.conv.weight is missing"),
    "concatenation": (
        lambda: from_mmseg(
            NonLocal().state_dict() | {"concat_project.conv.weight": torch.ones(1, C, 1, 1)}
        ),
        "concat_project.conv.weight is unknown",
    ),
    "unfitting": (
        lambda: from_mmseg(NonLocal().state_dict() | {"phi.conv.weight": torch.ones(5, C, 1, 1)}),
        "do not fit each other.*key.weight",
    ),
}


@pytest.mark.parametrize(("take", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_by_name(take, message):
    with pytest.raises(ValueError, match="(?s)" + message):
        take()


def test_odd_maps_are_pooled_whole():
    """The one difference of ``sub_sample``, which the docstring tells."""
    theirs = random_block(lambda: NonLocal(sub_sample=True)).eval()
    ours = from_mmseg(theirs.state_dict(), sub_sample=True).eval()
    x = torch.randn(1, C, 5, 7)
    assert ours.key_grid(5, 7) == (3, 4)
    whole = F.pad(x, (0, 1, 0, 1), mode="replicate")  # what is new repeats the edge
    assert_near(ours(whole), theirs(whole))
    assert (ours(x) - theirs(x)).abs().max() > 1e-3

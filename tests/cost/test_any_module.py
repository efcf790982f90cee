"""Costs of modules that other tools have been at: trained, normalised, compiled."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune, spectral_norm, weight_norm

from cvattn.blocks import SelfAttention2d
from cvattn.core import Encoder
from cvattn.core.copies import copy_with
from cvattn.cost import count_macs, explain_attention, predict_peak

pytestmark = pytest.mark.filterwarnings("ignore:.*(spectral|weight)_norm.*:FutureWarning")


def plain():
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(3, 16, 3), SelfAttention2d(16), nn.ReLU())


X = torch.randn(2, 3, 9, 11)
NORMS = {
    "spectral_norm": spectral_norm,
    "weight_norm": weight_norm,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())
def test_norms_that_keep_a_computed_weight(norm, trained):
    want = count_macs(plain(), X)
    model = plain()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            norm(layer)
    if trained:
        model(X).sum().backward()
    before = [tensor.clone() for tensor in model.state_dict().values()]
    # The norm's own product is counted with the rest; it is small beside a convolution.
    assert want <= count_macs(model, X) <= 1.1 * want
    (cost,) = explain_attention(model, X, training=True)
    assert (cost.name, cost.queries, cost.keys) == ("1", 63, 63)
    assert predict_peak(model, X, training=True) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["whole", "part", "in place"])
def test_compiled_modules(where):
    torch._dynamo.reset()
    x = torch.randn(2, 5, 6)
    model = nn.Sequential(nn.Linear(6, 6), Encoder(6, 2, 7, 1))
    macs, costs = count_macs(model, x), explain_attention(model, x)
    if where == "whole":
        model = torch.compile(model, backend="aot_eager")
    elif where == "part":
        model[1] = torch.compile(model[1], backend="aot_eager")
    else:
        model.compile(backend="aot_eager")
    model(x)
    assert count_macs(model, x) == macs
    found = explain_attention(model, x)
    assert [each.name.replace("_orig_mod.", "") for each in found] == [each.name for each in costs]
    if where != "part":
        assert found == costs
    assert predict_peak(model, x, training=True) > 0


def test_a_copy_shares_what_was_shared_and_nothing_else():
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3)])
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    model[2].kept = model[0].weight * 2
    other = copy_with(model, torch.Tensor.clone)
    assert other[0].weight is other[1].weight
    assert [p.requires_grad for p in other.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
        assert a.data_ptr() != b.data_ptr()
    assert torch.equal(other[2].kept, model[2].kept)

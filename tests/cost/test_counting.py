"""count_macs against numbers worked out by hand."""

import pytest
import torch
from torch import nn

from cvattn.blocks import SelfAttention2d
from cvattn.core import MultiHeadAttention
from cvattn.cost import count_macs, count_parameters, training_pflop
from cvattn.models import SAGANClassifier, VisionTransformer

N = 5 * 7
CASES = {
    "linear": (nn.Linear(11, 13), (3, 11), 3 * 11 * 13),
    "convolution": (nn.Conv2d(3, 8, 5, padding=2), (2, 3, 5, 7), 2 * N * 8 * 3 * 25),
    "strided, grouped": (
        nn.Conv2d(6, 4, 3, stride=2, padding=1, groups=2),
        (1, 6, 5, 7),
        3 * 4 * 4 * 3 * 9,
    ),
    "multi-head": (MultiHeadAttention(12, 3), (2, 5, 12), 2 * (4 * 5 * 12 * 12 + 2 * 5 * 5 * 12)),
    "common block": (
        SelfAttention2d(24),
        (2, 24, 5, 7),
        2 * (N * 24 * (3 + 3 + 24) + N * N * (3 + 24)),
    ),
    "two heads": (
        SelfAttention2d(24, qk_channels=6, num_heads=2),
        (1, 24, 5, 7),
        N * 24 * (6 + 6 + 24) + N * N * (6 + 24),
    ),
    "biggan block": (
        SelfAttention2d.biggan(24),
        (1, 24, 5, 7),
        N * 24 * (3 + 3 + 12) + N * 3 * 4 * (3 + 12) + N * 12 * 24,
    ),
    # Large enough for the padded route, whose zero columns are no work of the network's.
    "large map": (
        SelfAttention2d(16),
        (1, 16, 67, 71),
        4757 * 16 * (2 + 2 + 16) + 4757 * 4757 * (2 + 16),
    ),
}


@pytest.mark.parametrize(("module", "shape", "want"), CASES.values(), ids=CASES.keys())
def test_macs_by_hand(module, shape, want):
    assert count_macs(module, torch.randn(shape)) == want


def test_macs_of_cross_attention_with_unequal_widths():
    module = MultiHeadAttention(12, 3, kdim=7, vdim=5)
    query, key, value = torch.randn(2, 3, 12), torch.randn(2, 11, 7), torch.randn(2, 11, 5)
    projections = 3 * 12 * 12 + 11 * 7 * 12 + 11 * 5 * 12 + 3 * 12 * 12
    assert count_macs(module, query, key, value) == 2 * (projections + 2 * 3 * 11 * 12)


def test_macs_of_a_layer_that_is_given_a_parameter():
    """A view of one, without gradients, is what torch's counter cannot place."""

    class Queries(nn.Module):
        def __init__(self):
            super().__init__()
            self.query = nn.Parameter(torch.randn(2, 12))
            self.attn = MultiHeadAttention(12, 3)

        def forward(self, x):
            return self.attn(self.query.expand(len(x), -1, -1), x)

    module = Queries()
    want = 3 * (2 * 2 * 12 * 12 + 2 * 5 * 12 * 12 + 2 * 2 * 5 * 12)
    assert count_macs(module, torch.randn(3, 5, 12)) == want
    assert module.query.requires_grad


def test_macs_of_a_vision_transformer():
    model = VisionTransformer(
        5, image_size=(6, 10), patch_size=2, embed_dim=12, num_heads=3, ffn_dim=20, num_layers=2
    )
    n, d = 15, 12
    layer = 4 * n * d * d + 2 * n * n * d + 2 * n * d * 20
    assert count_macs(model, torch.randn(1, 3, 6, 10)) == n * d * 12 + 2 * layer + d * 5


def test_attention_costs_what_it_adds():
    sizes = {"image_size": (21, 11), "widths": (6, 8, 10)}
    images = torch.randn(1, 3, 21, 11)
    without = count_macs(SAGANClassifier(5, **sizes, attention="none"), images)
    n = 5 * 2
    block = n * 8 * (1 + 1 + 8) + n * n * (1 + 8)
    assert count_macs(SAGANClassifier(5, **sizes), images) == without + block


def test_the_count_leaves_no_trace():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), SelfAttention2d.biggan(8))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    count_macs(model, torch.randn(2, 3, 5, 7))
    assert [module.training for module in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    with pytest.raises(RuntimeError):
        count_macs(model, torch.randn(2, 4, 5, 7))
    assert [module.training for module in model.modules()] == modes


def test_parameters_that_train():
    model = nn.Sequential(nn.Linear(11, 13), nn.Linear(13, 2, bias=False))
    assert count_parameters(model) == 11 * 13 + 13 + 26
    model[0].weight.requires_grad_(False)
    assert count_parameters(model) == 13 + 26
    assert count_parameters(model, frozen=True) == 11 * 13 + 13 + 26


def test_training_cost():
    """The unit of the README: ResNet-18 at 0.56 GMACs, 200 passes over 50,000 images, 33 PFLOP."""
    assert training_pflop(556_000_000, 200 * 50_000) == pytest.approx(33.36)

"""Muon against the singular value decomposition, its other half against torch's AdamW."""

import copy

import pytest
import torch
from oracles import assert_near
from torch import nn

from cvattn.tasks import Muon, parameter_groups
from cvattn.tasks.muon import orthogonalised


def nearest_orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    left, _, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return left @ right


@pytest.mark.parametrize("shape", [(5, 23), (23, 5), (7, 7), (1, 3)])
def test_orthogonalised_turns_singular_values_to_about_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(5)) * 37.0
    found = orthogonalised(matrix, 5)
    values = torch.linalg.svdvals(found.double())
    assert values.min() > 0.6
    assert values.max() < 1.25
    want = nearest_orthogonal(matrix)
    similarity = (found * want).sum() / (found.norm() * want.norm())
    assert similarity > 0.96


def test_orthogonalised_keeps_zeros_and_forgets_the_scale():
    matrix = torch.randn(5, 7)
    assert torch.equal(orthogonalised(torch.zeros(5, 7), 5), torch.zeros(5, 7))
    # A power of two: the digits stay what they are, whatever the processor.
    assert torch.equal(orthogonalised(matrix * 2**10, 5), orthogonalised(matrix, 5))


@pytest.mark.usefixtures("float64")
def test_a_filter_moves_along_its_orthogonalised_nesterov_momentum():
    torch.manual_seed(2)
    weight = nn.Parameter(torch.randn(5, 3, 2, 3))
    want = weight.detach().clone()
    optimizer = Muon([weight], lr=0.3, momentum=0.5, weight_decay=0.1, newton_schulz_steps=4)
    momentum = torch.zeros_like(want)  # halved without rounding: what is orthogonalised is exact
    for _ in range(3):
        weight.grad = torch.randn_like(want)
        momentum = 0.5 * momentum + weight.grad
        ahead = (weight.grad + 0.5 * momentum).reshape(5, 18)
        want = want * (1 - 0.3 * 0.1) - 0.3 * orthogonalised(ahead, 4).reshape(want.shape)
        optimizer.step()
    assert_near(weight.detach(), want)


@pytest.mark.usefixtures("float64")
def test_the_rest_is_adamw():
    torch.manual_seed(3)
    mine = nn.ParameterList([nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(5))])
    theirs = copy.deepcopy(mine)
    ours = Muon(
        [
            {"params": [mine[0]], "role": "head", "weight_decay": 0.3},
            {"params": [mine[1]], "role": "vector", "weight_decay": 0.0},
        ],
        head_lr=0.02,
        vector_lr=0.07,
        betas=(0.8, 0.9),
    )
    reference = torch.optim.AdamW(
        [
            {"params": [theirs[0]], "lr": 0.02, "weight_decay": 0.3},
            {"params": [theirs[1]], "lr": 0.07, "weight_decay": 0.0},
        ],
        betas=(0.8, 0.9),
    )
    for _ in range(4):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        ours.step()
        reference.step()
    for a, b in zip(mine, theirs, strict=True):
        assert_near(a, b)


def test_groups_of_a_network_get_their_rates_and_a_schedule_scales_them():
    network = nn.Sequential()
    network.add_module("body", nn.Linear(3, 5))
    network.add_module("head", nn.Linear(5, 2))
    optimizer = Muon(parameter_groups(network), lr=0.5, head_lr=0.25, vector_lr=0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.25, 0.125]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.125, 0.0625]
    assert schedule.base_lrs == [0.5, 0.25, 0.125]


def test_a_saved_state_goes_on_as_if_never_saved(tmp_path):
    def make(network):
        return Muon(parameter_groups(network), lr=0.1)

    def train(network, optimizer, steps):
        for step in steps:
            torch.manual_seed(step)
            optimizer.zero_grad()
            network(torch.randn(7, 3)).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2))
    halves = copy.deepcopy(whole)
    train(whole, make(whole), range(6))
    first = make(halves)
    train(halves, first, range(3))
    torch.save(first.state_dict(), tmp_path / "state")
    second = make(halves)
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    train(halves, second, range(3, 6))
    for a, b in zip(whole.parameters(), halves.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("groups", "options", "message"),
    [
        ([{"params": [torch.zeros(3)], "role": "hidden"}], {}, r"shape \(3,\).*role 'vector'"),
        ([{"params": [torch.zeros(3)], "role": "tail"}], {}, r"role='tail'.*'head', 'hidden'"),
        ([torch.zeros(2, 2)], {"lr": -0.1}, r"lr=-0\.1"),
        ([torch.zeros(2, 2)], {"momentum": 1.0}, r"momentum=1\.0 must be below 1"),
    ],
)
def test_refused(groups, options, message):
    with pytest.raises(ValueError, match=message):
        Muon(groups, **options)

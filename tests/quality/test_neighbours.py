"""Copies are found, and nothing is made of images that are none."""

import pytest
import torch

from cvattn.quality.neighbours import Neighbours, as_points, find_neighbours


@pytest.fixture
def points(digits):
    train, test = (as_points(digits.split(split).images[:, :1]) for split in ("train", "test"))
    # In the data's order the writers change.
    test = test[torch.randperm(360, generator=torch.Generator().manual_seed(2))]
    return train, test[:151], test[151:]


def found(samples, test, train):
    return find_neighbours("pixels", samples, test, train, torch.arange(len(train)))


def test_distances_are_those_of_all_pairs(points):
    train, test, others = points
    result = found(others, test, train)
    pairs = torch.cdist(
        others.double(), train.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    assert torch.equal(result.nearest, pairs.argmin(1))
    torch.testing.assert_close(result.distances, pairs.amin(1), rtol=1e-12, atol=0)
    assert result.among == len(train)


def test_blocks_change_nothing(points, monkeypatch):
    train, test, others = points
    whole = found(others, test, train)
    monkeypatch.setattr("cvattn.quality.neighbours._BLOCK", 101)
    parts = found(others, test, train)
    assert torch.equal(whole.nearest, parts.nearest)
    assert torch.equal(whole.distances, parts.distances)


def test_positions_are_those_in_the_training_images(points):
    train, test, others = points
    positions = torch.arange(len(train)).flip(0)[::3]
    result = find_neighbours("pixels", others, test, train[positions], positions)
    distances = (others.double() - train[result.nearest].double()).norm(dim=1)
    assert torch.equal(distances, result.distances)


def test_other_test_images_raise_no_alarm(points):
    train, test, others = points
    result = found(others, test, train)
    assert not result.alarm
    assert 0.001 < result.chance <= 1
    assert 0.01 <= result.test_share < 0.03


def test_chance_is_how_often_it_happens():
    """Two sets that are drawn alike, again and again."""
    generator = torch.Generator().manual_seed(0)
    trials, seen = 3000, []
    for _ in range(trials):
        samples, test = torch.rand(2, 61, generator=generator).double()
        seen.append(Neighbours("pixels", 0, samples[:47], samples, test).chance)
    chances = torch.tensor(seen)
    assert chances.min() > 0
    for level in (0.5, 0.1, 0.02):
        # Of a whole number of samples: at most as often as it says, and near that at some values.
        expected = chances[chances <= level].amax().item()
        found = (chances <= level).double().mean().item()
        assert found == pytest.approx(expected, abs=4 * (expected / trials) ** 0.5)


def test_copies_raise_the_alarm(points):
    train, test, _ = points
    result = found(train[:149], test, train)
    assert result.alarm
    assert result.share == 1
    assert result.distances.max() == 0
    assert torch.equal(train[result.nearest], train[:149])


@pytest.mark.parametrize(("copies", "alarm"), [(2, False), (30, True)])
def test_some_copies_among_others_are_enough(points, copies, alarm):
    train, test, others = points
    samples = torch.cat([train[:copies], others[copies:]])
    assert found(samples, test, train).alarm is alarm


def test_data_whose_test_images_are_training_images_raise_no_alarm(points):
    """All are at 0: a threshold that nothing is below says nothing of copies."""
    train, _, _ = points
    result = found(train[:100], train[100:200], train)
    assert result.share == result.test_share == 1
    assert result.chance == pytest.approx(0.5)
    assert not result.alarm

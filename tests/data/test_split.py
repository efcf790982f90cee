"""Splits: disjoint, stratified, and the same for ever."""

import hashlib

import pytest
import torch

from cvattn.data.split import stratified_split


@pytest.mark.parametrize("size", [0, 1, 13, 97, 211])
def test_parts_are_disjoint_and_in_proportion(size):
    labels = (torch.arange(211) ** 2) % 7  # unequal classes
    rest, chosen = stratified_split(labels, size, seed=1)
    assert len(chosen) == size
    assert torch.equal(torch.cat((rest, chosen)).sort().values, torch.arange(211))
    exact = labels.bincount().double() * size / 211
    assert (labels[chosen].bincount(minlength=len(exact)) - exact).abs().max() < 1


def test_the_split_is_pinned():
    _, chosen = stratified_split(torch.arange(1009) % 10, 100, seed=2009)
    digest = hashlib.sha256(chosen.numpy().tobytes()).hexdigest()
    assert digest[:16] == "fd2ec4c4e205d48e"
    _, other = stratified_split(torch.arange(1009) % 10, 100, seed=2010)
    assert not torch.equal(chosen, other)


def test_labels_in_order_are_not_split_by_position():
    _, chosen = stratified_split(torch.arange(1000) // 100, 200, seed=0)
    within = chosen % 100
    assert 40 < within.double().mean() < 60
    assert chosen.diff().unique().numel() > 5


def test_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="cannot choose 4 of 3"):
        stratified_split(torch.zeros(3, dtype=torch.int64), 4, seed=0)

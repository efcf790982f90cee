"""The order of training that reads a few files at a time."""

import pytest
import torch

from cvattn.data.counter import permutation
from cvattn.data.locality import Locality

FILES = torch.arange(7).repeat_interleave(torch.tensor([5, 11, 3, 7, 13, 2, 17]))


def groups(order, at_once):
    """The files of each run of the order that has at most ``at_once`` of them."""
    runs, current = [], []
    for file in FILES[order].tolist():
        if file not in current and len(current) == at_once:
            runs.append(current)
            current = []
        if file not in current:
            current.append(file)
    return [*runs, current]


@pytest.mark.parametrize("at_once", [0, 7, 8, 100])
def test_all_files_at_once_is_a_plain_permutation(at_once):
    for epoch in range(3):
        assert torch.equal(Locality(FILES, at_once).order(5, epoch), permutation(5, epoch, 58))


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_each_sample_once_and_few_files_at_a_time(at_once):
    seen = set()
    for epoch in range(4):
        order = Locality(FILES, at_once).order(3, epoch)
        assert order.sort().values.tolist() == list(range(58))
        found = groups(order, at_once)
        assert sorted(file for run in found for file in run) == list(range(7))
        seen.add(tuple(tuple(sorted(run)) for run in found))
    assert len(seen) == 4  # other files go together in each epoch


def test_samples_of_files_that_go_together_are_mixed():
    order = Locality(FILES, 3).order(1, 0)
    first = FILES[order][: sum((f == FILES).sum() for f in groups(order, 3)[0])]
    changes = int((first[1:] != first[:-1]).sum())
    assert changes > 10  # 2, were they one after another


def test_it_depends_on_seed_and_epoch_alone():
    one = Locality(FILES, 2)
    assert torch.equal(one.order(1, 2), Locality(FILES.clone(), 2).order(1, 2))
    assert not torch.equal(one.order(1, 2), one.order(1, 3))
    assert not torch.equal(one.order(1, 2), one.order(2, 2))


def test_files_that_are_left_out_do_no_harm():
    kept = Locality(FILES[FILES != 3], 2)
    assert kept.order(0, 0).sort().values.tolist() == list(range(51))
    assert Locality(FILES[:0], 2).order(0, 0).tolist() == []

"""What a classifier learns from samples: good ones, few kinds of them, wrong ones."""

import pytest
import torch
from small_features import COUNT

from cvattn.quality import learn_from


@pytest.mark.slow
def test_it_tells_good_samples_from_few_kinds_and_wrong_ones(digits, small):
    split = digits.split("train")
    at = torch.randperm(1257, generator=torch.Generator().manual_seed(3))[:COUNT]
    images, labels = split.images[at], split.labels[at]
    good = learn_from(images, labels, small, steps=150)
    assert (good.count, good.steps) == (COUNT, 150)
    assert abs(good.samples - good.training) < 0.15
    assert good == learn_from(images, labels, small, steps=150)
    # One image of each class: typical, and not all that there is.
    first = torch.stack([images[labels == label][0] for label in range(10)])
    few = learn_from(first[labels], labels, small, steps=150)
    assert few.training == good.training
    assert few.samples < good.samples - 0.2
    wrong = learn_from(images, (labels + 1) % 10, small, steps=150)
    assert wrong.samples < 0.2


def test_it_leaves_the_random_state_alone(digits, small):
    split = digits.split("train")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    learn_from(split.images[:COUNT], split.labels[:COUNT], small, steps=1)
    assert torch.equal(torch.get_rng_state(), before)

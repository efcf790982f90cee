"""Distances climb as images get worse, from a floor that good ones do not reach."""

import importlib

import pytest
import torch
from scipy.ndimage import gaussian_filter
from small_features import COUNT, Small

from cvattn.data import FashionMNISTData
from cvattn.data.images import fashion_mnist_files
from cvattn.quality import Reference, extract, floor, frechet, kernel, ladder
from cvattn.quality.ladder import BLURS, NOISES, blurred, noisy


def values(rungs, kind, pick):
    """The means from the floor up, of one kind of rungs."""
    return [getattr(rung.distances, pick).mean for rung in rungs if rung.kind in ("floor", kind)]


def unseen(rungs, pick):
    """Rungs that are not above every draw of the floor."""
    first, *others = [(rung.name, getattr(rung.distances, pick)) for rung in rungs]
    return [name for name, each in others if each.low <= first[1].high]


def test_the_ladder_climbs(small):
    """These features are coarse, and of what is smooth already they do not see the blur."""
    rungs = ladder(small)
    assert [rung.kind for rung in rungs] == [
        *("floor", "blur", "blur", "blur", "noise", "noise", "noise", "missing class", "one image")
    ]
    for pick in ("frechet", "kernel"):
        weak = {"blur, sigma 0.5", "blur, sigma 1", "noise, std 0.05", "without 0"}
        assert set(unseen(rungs, pick)) <= weak
        noise, blur = values(rungs, "noise", pick), values(rungs, "blur", pick)
        assert noise == sorted(noise)
        assert blur[1:] == sorted(blur[1:])
    frechet = {rung.name: rung.distances.frechet.mean for rung in rungs}
    assert frechet["without 0"] > frechet["training images"]


def test_it_is_the_same_again_and_another_with_another_seed(digits, small):
    (first, again, other) = (
        ladder(Reference(digits, count=61, draws=2, seed=seed, network=Small()))
        for seed in (5, 5, 6)
    )
    assert first == again
    assert all(a.distances != b.distances for a, b in zip(first, other, strict=True))


def test_the_floor_is_training_against_test_images(digits, small):
    found = floor(small).distances
    for draw in range(2):
        sides = [
            extract(small.network, digits.split(split).images[small.drawn(split, draw)])
            for split in ("train", "test")
        ]
        assert found.frechet.values[draw] == frechet(*sides)
        assert found.kernel.values[draw] == kernel(*sides)
    assert found.frechet.values[0] != found.frechet.values[1]
    each = found.frechet
    assert (each.name, found.kernel.name) == ("FD-small", "KD-small")
    assert (each.count, each.reference_count, each.reference) == (COUNT, COUNT, "test")
    assert (each.weights, each.size, each.note) == ("none", 5, "")
    assert each.low < each.mean < each.high


def test_a_draw_has_each_image_once_and_none_of_a_class_that_is_missing(digits, small):
    labels = digits.split("train").labels
    for draw in range(2):
        assert len(small.drawn("train", draw).unique()) == COUNT
        some = small.drawn("train", draw, without=4)
        assert sorted(labels[some].unique().tolist()) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
        assert len(some.unique()) == COUNT
    assert not torch.equal(small.drawn("train", 0), small.drawn("train", 1))


def test_features_of_an_image_are_computed_once(digits):
    class Counting(Small):
        asked = 0

        def forward(self, images):
            self.asked += len(images)
            return super().forward(images)

    network = Counting()
    reference = Reference(digits, count=50, network=network)
    at = torch.tensor([7, 3, 7, 11])
    found = reference.features("train", at)
    assert network.asked == 3
    assert torch.equal(found, super(Counting, network).forward(digits.split("train").images[at]))
    reference.features("train", torch.tensor([11, 3]))
    assert network.asked == 3


@pytest.mark.parametrize("sigma", BLURS)
def test_the_blur_is_gaussian(sigma):
    images = torch.randint(0, 256, (2, 3, 29, 23), dtype=torch.uint8)
    found = blurred(images, sigma)
    for image, planes in zip(images, found, strict=True):
        for plane, ours in zip(image, planes, strict=True):
            theirs = gaussian_filter(
                plane.double().numpy(), sigma, mode="nearest", radius=-int(-4 * sigma // 1)
            )
            assert (ours.double() - torch.from_numpy(theirs)).abs().max() <= 0.51


@pytest.mark.parametrize("std", NOISES)
def test_the_noise_has_its_deviation(std):
    images = torch.full((3, 1, 97, 101), 128, dtype=torch.uint8)
    found = noisy(images, std, torch.Generator().manual_seed(1)).double()
    assert found.std().item() == pytest.approx(255 * std, rel=0.03)
    assert found.mean().item() == pytest.approx(128, abs=1)
    dark = noisy(images * 0, std, torch.Generator().manual_seed(1))
    assert (dark == 0).double().mean() == pytest.approx(0.5, abs=0.03)


def test_each_draw_has_noise_of_its_own(digits, monkeypatch):
    module, drawn = importlib.import_module("cvattn.quality.ladder"), []

    def recorded(images, std, generator):
        drawn.append(torch.rand(1, generator=generator).item())
        return images

    monkeypatch.setattr(module, "noisy", recorded)
    for seed in (0, 1):
        ladder(Reference(digits, count=3, draws=2, seed=seed, network=Small()))
    assert len(drawn) == len(set(drawn)) == 2 * 2 * len(NOISES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 361}, "count=361: expected 2 to 360 images, of which digits has 1257 to train"),
        ({"count": 1}, "count=1: expected 2 to 360"),
        ({"count": 9, "draws": 0}, "draws=0 must be at least 1"),
    ],
)
def test_what_the_data_has_not_is_refused(digits, arguments, message):
    with pytest.raises(ValueError, match=message):
        Reference(digits, network=Small(), **arguments)


def test_too_few_without_a_class_is_said(digits):
    reference = Reference(digits, count=360, network=Small())
    labels = digits.split("test").labels
    left = int((labels != 3).sum())
    with pytest.raises(ValueError, match=f"without '3' digits has {left} images in test"):
        reference.drawn("test", 0, without=3)


@pytest.mark.slow  # a network that knows ImageNet looks at 2,000 images
@pytest.mark.parametrize("name", ["digits", "fashion_mnist"])
def test_real_features_of_real_images_climb(lite0, digits, name, tmp_path):
    data = digits
    if name == "fashion_mnist":
        if fashion_mnist_files.find(tmp_path) is None:
            pytest.skip("there is no Fashion-MNIST here: apt install dataset-fashion-mnist")
        data = FashionMNISTData(root=tmp_path)
    rungs = ladder(Reference(data, count=200, draws=1, network=lite0))
    for pick in ("frechet", "kernel"):
        assert unseen(rungs, pick) == []
        blur, noise = values(rungs, "blur", pick), values(rungs, "noise", pick)
        assert blur == sorted(blur)
        if (name, pick) != ("digits", "kernel"):  # which is at its top at a noise of 0.1
            assert noise == sorted(noise)
    assert "rank 199" in rungs[0].distances.frechet.note

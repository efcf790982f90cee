"""The distances against their formulas, written otherwise."""

import numpy as np
import pytest
import torch

from cvattn.quality import distance, frechet, kernel


def gaussian(count, mean, factor, seed):
    """Points whose mean is ``mean`` and whose covariance is ``factor factor^T``, exactly."""
    size = len(mean)
    points = torch.randn(count, size, generator=torch.Generator().manual_seed(seed)).double()
    points -= points.mean(0)
    points = points @ torch.linalg.inv(torch.linalg.cholesky(points.T.cov())).T
    return points @ factor.T + mean


def root(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def test_frechet_of_independent_features_is_that_of_each(seed):
    m1, m2, s1, s2 = torch.rand(4, 13, dtype=torch.float64) + 0.3
    found = frechet(gaussian(41, m1, s1.diag(), 1), gaussian(37, m2, s2.diag(), 2))
    expected = ((m1 - m2) ** 2 + (s1 - s2) ** 2).sum().item()
    assert found == pytest.approx(expected, rel=1e-9)


def test_frechet_of_dependent_features(seed):
    """By the symmetric form of the root, tr (A^1/2 B A^1/2)^1/2."""
    m1, m2 = torch.randn(2, 11, dtype=torch.float64)
    f1, f2 = torch.randn(2, 11, 11, dtype=torch.float64)
    a, b = f1 @ f1.T, f2 @ f2.T
    middle = root(root(a) @ b @ root(a)).trace()
    expected = ((m1 - m2) ** 2).sum() + a.trace() + b.trace() - 2 * middle
    found = frechet(gaussian(59, m1, f1, 3), gaussian(61, m2, f2, 4))
    assert found == pytest.approx(expected.item(), rel=1e-8)


def test_frechet_of_fewer_images_than_features(seed):
    """The trace of the root is the sum of the singular values of A^T B, of centred features."""
    x, y = torch.randn(17, 43).double(), 2 * torch.randn(19, 43).double() + 0.5
    centred = [(points - points.mean(0)) / (len(points) - 1) ** 0.5 for points in (x, y)]
    sizes = np.linalg.svd((centred[0] @ centred[1].T).numpy(), compute_uv=False)
    expected = (
        (x.mean(0) - y.mean(0)).square().sum() + sum(c.square().sum() for c in centred)
    ).item() - 2 * sizes.sum()
    # The root of an eigenvalue that should be 0 is that of a rounding error.
    largest = max(np.linalg.norm(c.numpy(), 2) ** 2 for c in centred)
    allowed = 43 * largest * np.finfo(float).eps ** 0.5
    assert abs(frechet(x, y) - expected) < allowed < 1e-3 * expected


def test_a_set_is_at_no_distance_from_itself(seed):
    points = torch.randn(47, 9)
    assert abs(frechet(points, points)) < 1e-6
    assert frechet(points, points + 2) == pytest.approx(4 * 9, rel=1e-6)


def slow_kernel(x, y):
    def k(a, b):
        return (np.dot(a, b) / len(a) + 1) ** 3

    n = len(x)
    within = sum(k(s[i], s[j]) for s in (x, y) for i in range(n) for j in range(n) if i != j) / (
        n * (n - 1)
    )
    return within - 2 * sum(k(a, b) for a in x for b in y) / n**2


def test_kernel_is_the_unbiased_mean_discrepancy(seed):
    x, y = np.random.default_rng(0).normal(size=(2, 23, 7))
    y = y + 0.4
    found = kernel(torch.from_numpy(x), torch.from_numpy(y))
    assert found == pytest.approx(slow_kernel(x, y), rel=1e-10)
    assert found > 0


def test_kernel_between_equal_distributions_lies_on_both_sides_of_0():
    draws = torch.randn(40, 2, 31, 5, generator=torch.Generator().manual_seed(0))
    values = [kernel(x, y) for x, y in draws]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 3 * np.std(values) / len(values) ** 0.5


def test_kernel_of_many_images_is_a_mean_over_subsets(monkeypatch):
    x, y = torch.randn(2, 60, 3, generator=torch.Generator().manual_seed(1))
    y = y + 0.5
    whole = kernel(x, y)
    monkeypatch.setattr(distance, "_KERNEL_IMAGES", 20)
    before = torch.random.get_rng_state()
    parts = [kernel(x, y, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert parts[0] == parts[1] != parts[2]
    assert parts[0] == pytest.approx(whole, rel=0.5)
    assert parts[0] != whole


def test_few_images_are_noted():
    assert distance.note_on(2000, 1280) == distance.note_on(1281, 1280) == ""
    assert "1280 images have covariances of rank 1279" in distance.note_on(1280, 1280)


@pytest.mark.parametrize("measure", [frechet, kernel])
def test_what_cannot_be_compared_is_refused(measure):
    with pytest.raises(ValueError, match=r"got \(4, 5\) and \(4, 6\)"):
        measure(torch.zeros(4, 5), torch.zeros(4, 6))
    with pytest.raises(ValueError, match="1 and 4 images: a distance needs 2"):
        measure(torch.zeros(1, 5), torch.zeros(4, 5))

"""How far made images are from real ones: against loops, and against what is done to images."""

import math

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_near

from cvattn.tasks.made_images import SlicedWasserstein, Spread, sliced_wasserstein, spread


def scenes(count: int, *, seed: int, shape=(2, 17, 23)) -> torch.Tensor:
    """A bright square somewhere, of one of two shades."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.1 * torch.randn(count, *shape, generator=generator)
    for image in images:
        y, x = (int(torch.randint(0, side - 6, (), generator=generator)) for side in shape[1:])
        shade = 1.0 + float(torch.randint(0, 2, (), generator=generator))
        image[:, y : y + 6, x : x + 6] += shade
    return images


@pytest.mark.usefixtures("float64")
def test_one_level_against_loops():
    """Sides below 14 have no second level: patches, directions and sorting are all there is."""
    made, real = scenes(5, seed=1, shape=(2, 7, 9)), scenes(5, seed=2, shape=(2, 7, 9))
    found = sliced_wasserstein(made, real, patches=3, projections=4, seed=11)
    generator = torch.Generator().manual_seed(11)
    rows = torch.randint(0, 1, (5, 3), generator=generator)
    columns = torch.randint(0, 3, (5, 3), generator=generator)
    directions = torch.randn(2 * 49, 4, generator=generator)
    directions = directions / directions.norm(dim=0)

    def patches(images):
        return torch.stack(
            [
                images[n, :, r : r + 7, c : c + 7]
                for n in range(5)
                for r, c in zip(rows[n].tolist(), columns[n].tolist(), strict=True)
            ]
        )

    mine, theirs = patches(made), patches(real)
    apart = []
    for k in range(4):
        values = []
        for part in (mine, theirs):
            scaled = torch.stack(
                [(part[:, c] - theirs[:, c].mean()) / theirs[:, c].std() for c in range(2)],
                dim=1,
            )
            values.append(sorted((scaled.flatten(1) @ directions[:, k]).tolist()))
        apart.append(sum(abs(a - b) for a, b in zip(*values, strict=True)) / 15)
    assert float(found) == pytest.approx(sum(apart) / 4, rel=1e-12)


def test_a_ladder():
    """Worse images are further away; another draw of the same is near."""
    real, same = scenes(300, seed=1), scenes(300, seed=2)
    known = float(sliced_wasserstein(same, real))
    assert float(sliced_wasserstein(real, real)) == 0.0
    brighter = float(sliced_wasserstein(same + 0.3, real))
    noisy = [float(sliced_wasserstein(same + s * torch.randn_like(same), real)) for s in (0.1, 0.4)]
    blurred = float(sliced_wasserstein(F.avg_pool2d(same, 3, 1, 1), real))
    one_place = float(sliced_wasserstein(same[:1].expand_as(real), real))
    assert known < 0.1
    for worse in (brighter, blurred, noisy[0], one_place):
        assert worse > 1.5 * known
    assert noisy[1] > noisy[0]


def test_the_layout_of_whole_images_counts():
    """Halves that change places keep all small patches but those on the seam."""
    real = scenes(200, seed=1, shape=(1, 28, 28))
    real[..., 14:] -= 1.0
    other = scenes(200, seed=2, shape=(1, 28, 28))
    other[..., 14:] -= 1.0
    swapped = torch.cat([other[..., 14:], other[..., :14]], dim=-1)
    assert sliced_wasserstein(swapped, real) > 3 * sliced_wasserstein(other, real)


@pytest.mark.usefixtures("float64")
def test_spread_against_its_formula():
    made, real = scenes(11, seed=1), scenes(11, seed=2)
    labels = torch.tensor([0, 0, 0, 4, 4, 4, 4, 1, 1, 1, 2])  # one image of class 2

    def variance(images):
        parts = [images[labels == label].flatten(1) for label in (0, 1, 4)]
        return sum(((p - p.mean(0)) ** 2).sum() / (len(p) - 1) for p in parts) / 3

    want = math.sqrt(variance(made) / variance(real))
    assert float(spread(made, real, labels)) == pytest.approx(want, rel=1e-5)
    assert float(spread(real, real, labels)) == 1.0
    assert float(spread(2 * real, real, labels)) == pytest.approx(2.0)
    collapsed = real[[0, 0, 0, 3, 3, 3, 3, 7, 7, 7, 10]]
    assert float(spread(collapsed, real, labels)) == 0.0
    assert math.isnan(spread(made[:3], real[:3], torch.tensor([0, 1, 2])))


@pytest.mark.usefixtures("float64")
def test_only_the_first_pairs_of_a_set_are_kept():
    made, real = scenes(30, seed=1), scenes(30, seed=2)
    labels = torch.arange(30) % 3
    for kind, formula in ((SlicedWasserstein, sliced_wasserstein), (Spread, spread)):
        metric = kind(most=20)
        for part in (slice(0, 7), slice(7, 19), slice(19, 30)):
            metric.update(made[part], real[part], labels[part])
        arguments = (made[:20], real[:20], labels[:20])[: 3 if kind is Spread else 2]
        assert_near(metric.compute(), formula(*arguments))
        metric.reset()
        assert not metric.made


def test_refused_by_name():
    images = torch.zeros(3, 1, 8, 8)
    for made, real in ((images, images[:2]), (images[..., :6], images[..., :6])):
        with pytest.raises(ValueError, match=r"expected as many, .*at least 7 pixels"):
            sliced_wasserstein(made, real)

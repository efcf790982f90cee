"""DiffAugment: what each kind does to an image, that each has its own draw, that gradients pass."""

import pytest
import torch
from oracles import assert_near

from cvattn.tasks.diff_augment import DiffAugment

KINDS = ["color", "translation", "cutout"]


def images(count: int = 40) -> torch.Tensor:
    return torch.rand(count, 3, 17, 24, generator=torch.Generator().manual_seed(3)) + 0.5


def test_none_changes_nothing():
    given = images()
    assert DiffAugment(())(given) is given


def test_translation_moves_each_image_and_uncovers_zeros():
    given = images()
    moved, seen = DiffAugment(["translation"])(given), set()
    for before, after in zip(given, moved, strict=True):
        found = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-3, 4)
            if torch.equal(after, shifted(before, down, right))
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 15
    assert {down for down, _ in seen} == set(range(-2, 3))
    assert {right for _, right in seen} == set(range(-3, 4))


def shifted(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    height, width = image.shape[1:]
    wide = torch.zeros(image.shape[0], height + 6, width + 6)
    wide[:, 3 + down : 3 + down + height, 3 + right : 3 + right + width] = image
    return wide[:, 3:-3, 3:-3]


def test_cutout_empties_a_square_of_half_the_sides():
    given = images(200)
    left = DiffAugment(["cutout"])(given)
    empty = left.eq(0).all(1)
    assert torch.equal(
        left[~empty.unsqueeze(1).expand_as(left)], given[~empty.unsqueeze(1).expand_as(left)]
    )
    rows, columns = empty.any(2).sum(1), empty.any(1).sum(1)
    assert torch.equal(empty.sum((1, 2)), rows * columns)  # rectangles
    assert (int(rows.max()), int(columns.max())) == (8, 12)
    assert (int(rows.min()), int(columns.min())) == (4, 6)  # half of it lies across the edge


def test_color_is_a_change_of_brightness_saturation_and_contrast():
    """Of each image: differences of channels grow alike, and so do those of grey from its mean."""
    given = images().double()
    changed = DiffAugment(["color"])(given)
    grey = [x.mean(1, keepdim=True) for x in (given, changed)]
    centred = [g - g.mean((2, 3), keepdim=True) for g in grey]
    contrast = (centred[1] * centred[0]).sum((1, 2, 3)) / centred[0].square().sum((1, 2, 3))
    assert_near(centred[1], contrast.view(-1, 1, 1, 1) * centred[0])
    assert 0.5 <= contrast.min() < 0.7
    assert 1.3 < contrast.max() <= 1.5
    hue = [x - g for x, g in zip((given, changed), grey, strict=True)]
    factor = (hue[1] * hue[0]).sum((1, 2, 3)) / hue[0].square().sum((1, 2, 3))
    assert_near(hue[1], factor.view(-1, 1, 1, 1) * hue[0])
    saturation = factor / contrast
    assert 0 <= saturation.min() < 0.3
    assert 1.7 < saturation.max() <= 2.0
    shift = (changed - given).mean((1, 2, 3))
    assert -1.0 <= shift.min() < -0.7
    assert 0.7 < shift.max() <= 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_pass_to_what_is_still_seen(kind):
    given = images(5).requires_grad_()
    DiffAugment([kind])(given).square().sum().backward()
    assert given.grad.abs().sum((1, 2, 3)).min() > 0


def test_refused_by_name():
    with pytest.raises(ValueError, match="'cut'; expected some of color, translation, cutout"):
        DiffAugment(["cut"])
    with pytest.raises(ValueError, match="has a kind twice"):
        DiffAugment(["color", "color"])

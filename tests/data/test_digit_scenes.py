"""Scenes of digits: what is in them, what a far legend decides, and what nobody near can know."""

import numpy as np
import pytest
import torch

from cvattn.data import VOID, DigitScenesData
from cvattn.data.images.base import channel_statistics
from cvattn.data.images.digit_scenes import CELL, REACH, TONES, UNSEEN_CEILING
from cvattn.tasks.mean_iou import mean_iou

LEGEND, ZERO, TWO = 1, 2, 4


@pytest.fixture(scope="module")
def data():
    module = DigitScenesData()
    module.setup()
    return module


def squares(mask):
    """(top, left) of the legend's two."""
    rows, columns = (mask == LEGEND).nonzero().unbind(1)
    left = int(columns.min())
    return [(0, left), (int(rows.max()) + 1 - CELL, left)]


def inside(image, corner):
    """A digit of the legend, without its frame."""
    y, x = corner
    return image[y + 2 : y + CELL - 2, x + 2 : x + CELL - 2]


def test_constants_are_those_of_the_training_scenes(data):
    mean, std = channel_statistics(data.split("train").images)
    np.testing.assert_allclose((mean, std), (data.info.mean, data.info.std), atol=5e-5)
    assert data.info.classes == ("background", "legend", "zero", "one", "two")
    for name, count in (("train", 4000), ("val", 200), ("test", 500)):
        part = data.split(name)
        assert part.images.shape == (count, 1, 48, 96)
        assert part.labels.shape == (count, 48, 96)
        assert set(part.labels.unique().tolist()) == {*range(5), VOID}


@pytest.mark.parametrize(("size", "digits"), [((48, 96), 2), ((77, 131), 6), ([48, 80], 2)])
def test_the_legend_is_far_from_all_other_digits(size, digits):
    data = DigitScenesData(image_size=size, digits=digits, train_size=40, val_size=1, test_size=1)
    height, width = size
    sides = set()
    for mask in data.split("train").labels:
        assert (mask == LEGEND).sum() == 2 * CELL**2
        left = squares(mask)[0][1]
        assert squares(mask) == [(0, left), (height - CELL, left)]
        sides.add(left)
        columns = (mask >= ZERO).nonzero()[:, 1]
        gap = left - columns.max() - 1 if left else columns.min() - CELL
        assert gap >= REACH
    assert sides == {0, width - CELL}


def test_the_tone_of_a_digit_says_which_one_of_the_legend_names_its_class(data):
    """Read off the pixels: digits of one tone have one class, those of two have two.

    And the legend's digit of that tone looks like other legends' of the class: its nearest
    neighbour among them has it too.
    """
    part = data.split("train")
    known = {tone: {} for tone in (0, 1)}  # class -> pictures of the legend's digit
    right = asked = 0
    for image, mask in zip(part.images[:400, 0].float(), part.labels[:400], strict=True):
        classes = sorted(set(mask[(mask >= ZERO) & (mask <= TWO)].tolist()))
        assert 1 <= len(classes) <= 2
        level = {c: float(image[mask == c].mean()) for c in classes}
        middle = 180 * sum(TONES) / 2
        for corner in squares(mask):
            picture = inside(image, corner)
            tone = int(picture.max() < 200)
            of_tone = [c for c in classes if (level[c] < middle) == bool(tone)]
            if len(classes) == 2:
                assert len(of_tone) == 1
            if not of_tone:
                continue
            others = [
                (float((p - picture).square().mean()), c)
                for c in known[tone]
                for p in known[tone][c]
            ]
            if len(others) > 100:
                asked += 1
                right += min(others)[1] == of_tone[0]
            known[tone].setdefault(of_tone[0], []).append(picture)
    assert asked > 200
    assert right / asked > 0.9


def test_which_class_is_drawn_by_lot(data):
    """Neither a digit's place nor the legend's side says it: who sees no legend has a third."""
    masks = data.split("train").labels
    for half in (masks[:, :24], masks[:, 24:]):
        for chosen in (masks[:, 0, 0] == LEGEND, masks[:, 0, 0] != LEGEND):
            counts = torch.stack([(half[chosen] == c).flatten(1).any(1).sum() for c in (2, 3, 4)])
            share = counts / chosen.sum()
            assert (share - 1 / 3).abs().max() < 4 * (2 / 9 / chosen.sum()) ** 0.5


@pytest.mark.slow
def test_nobody_surpasses_the_ceiling_without_the_legend(data):
    """All right but for a fixed answer for each place: the ceiling, if each is said as often."""
    masks = data.split("train").labels.long()
    real, digits = masks != VOID, masks >= ZERO
    for shares, near in (
        ((1, 1, 1), True),
        ((1, 2, 3), False),
        ((0, 1, 1), False),
        ((0, 0, 1), False),
    ):
        lot = torch.tensor([c for c, n in enumerate(shares, ZERO) for _ in range(n)])
        answer = lot[torch.arange(48 * 96).view(48, 96) % len(lot)]
        guess = torch.where(digits, answer, masks)
        confusion = (5 * masks[real] + guess[real]).bincount(minlength=25).view(5, 5)
        found = float(mean_iou(confusion))
        assert found < UNSEEN_CEILING + 0.002
        assert (found > UNSEEN_CEILING - 0.002) == near


def test_a_scene_is_a_function_of_seed_and_index():
    def make(**options):
        return DigitScenesData(**{"train_size": 23, "val_size": 11, "test_size": 7, **options})

    first, larger, other = make(), make(train_size=600, test_size=13), make(seed=1)
    for name, count in (("train", 23), ("test", 7), ("val", 11)):
        for kind in ("images", "labels"):
            one, two, three = (getattr(d.split(name), kind) for d in (first, larger, other))
            assert torch.equal(one, two[:count])
            assert torch.equal(one, three) == (name != "train")
    assert len({image.numpy().tobytes() for image in larger.split("train").images}) == 600


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_size": (48, 79)}, r"48 x 80 pixels \(height x width\) at least"),
        ({"image_size": [47, 96]}, "at least"),
        ({"digits": 0}, "at least 1"),
        ({"digits": 3}, "have room for 2"),
        ({"noise": -1.0}, "noise"),
    ],
)
def test_what_cannot_be(options, said):
    with pytest.raises(ValueError, match=said):
        DigitScenesData(**options)

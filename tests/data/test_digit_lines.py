"""Lines of digits: the scans of their part, where they are said to be, the same every time."""

import pytest
import torch

from cvattn.data import DigitLinesData, DigitsData
from cvattn.data.sequences.digit_lines import MEAN, STD

PLAIN = {"rotation": 0.0, "shift": 0.0, "noise": 0.0, "gap": [0.0, 0.0], "size": [32.0, 32.0]}


@pytest.fixture(scope="module")
def data():
    made = DigitLinesData()
    made.setup()
    return made


def texts(targets):
    return ["".join(str(token - 3) for token in row if token > 2) for row in targets.tolist()]


def test_a_line_depends_on_seed_epoch_and_index_alone(data):
    (images, widths), targets = data.samples("train", torch.arange(23), 3)
    (again, again_widths), again_targets = data.samples("train", torch.tensor([17, 4, 4]), 3)
    for place, index in enumerate((17, 4, 4)):
        width = int(widths[index])
        assert width == int(again_widths[place])
        assert torch.equal(images[index, :, :, :width], again[place, :, :, :width])
        assert texts(targets)[index] == texts(again_targets)[place]
    for other, epoch in ((data, 4), (DigitLinesData(seed=1), 3)):
        other.setup()
        _, found = other.samples("train", torch.arange(23), epoch)
        assert texts(found) != texts(targets)
    other = DigitLinesData(seed=1)
    other.setup()
    fixed = [d.samples("test", torch.arange(23), e) for d, e in ((data, 0), (other, 7))]
    assert torch.equal(fixed[0][0][0], fixed[1][0][0])


def test_lengths_widths_and_what_lies_beyond(data):
    (images, widths), targets = data.samples("val", torch.arange(500))
    lengths = [len(text) for text in texts(targets)]
    assert set(lengths) == set(range(1, 9))
    assert images.shape[1:3] == (1, 32)
    assert images.shape[-1] % 32 == 0
    assert 200 < int(widths.max()) <= images.shape[-1] <= 256
    beyond = torch.arange(images.shape[-1]) >= widths[:, None]
    black = images.masked_select(beyond[:, None, None])
    assert len(black) > 1000
    torch.testing.assert_close(black, torch.full_like(black, -MEAN / STD))
    longest = torch.tensor(lengths).argmax()
    assert widths[longest] > widths[torch.tensor(lengths).argmin()]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_digit_is_a_scan_of_its_part(split):
    """Drawn straight and at full size, one digit is its scan, found by its pixels."""
    data = DigitLinesData(**PLAIN, max_length=1)
    data.setup()
    (images, _), targets = data.samples(split, torch.arange(29))
    pixels = images[:, 0] * STD * 255 + MEAN * 255
    digits = DigitsData()
    for line, text in zip(pixels, texts(targets), strict=True):
        # Half of the columns of a line hold the middle of the scan, moved by a part of a column.
        sums = line.sum(1)
        nearest = {}
        for part in ("train", "val", "test"):
            scans = digits.split(part)
            rows = scans.images[:, 0].float().sum(2)
            errors = (rows - sums).abs().sum(1)
            nearest[part] = (float(errors.min()), int(scans.labels[errors.argmin()]))
        assert min(nearest, key=nearest.get) == split
        assert nearest[split][1] == int(text)


def test_digits_stand_from_left_to_right():
    data = DigitLinesData(noise=0.0)
    data.setup()
    (images, widths), _ = data.samples("test", torch.arange(200))
    ink = (images[:, 0] * STD + MEAN).clamp(0, 1).sum(1)
    for row, width in zip(ink, widths.tolist(), strict=True):
        quarter = max(1, width // 4)
        assert row[:width].sum() > 30  # something is written
        if width > 60:
            assert row[:quarter].sum() > 5  # also at its beginning
            assert row[width - quarter : width].sum() > 5  # and its end


def test_moments_of_the_training_lines(data):
    (images, widths), _ = data.samples("train", torch.arange(1500))
    real = (torch.arange(images.shape[-1]) < widths[:, None])[:, None, None]
    pixels = images.masked_select(real.expand_as(images))
    assert abs(float(pixels.mean())) < 0.02
    assert abs(float(pixels.std()) - 1) < 0.02


def test_noise_is_where_asked_for_and_of_that_size():
    clean, noisy = (DigitLinesData(noise=noise) for noise in (0.0, 30.0))
    images = []
    for each in (clean, noisy):
        each.setup()
        images.append((each.samples("val", torch.arange(9))[0][0] * STD + MEAN) * 255)
    change = (images[1] - images[0]).abs()
    assert 5 < float(change.mean()) < 15
    assert float(change.max()) <= 30.6  # rounded to whole pixel values


def test_longer_lines_are_tested_beside(data):
    tests = data.further_tests()
    assert list(tests) == [f"{n} digits" for n in (9, 10, 11, 12)]
    for length, loader in zip((9, 10, 11, 12), tests.values(), strict=True):
        assert len(loader.batch_indices()) == 1
        _, targets = loader.batch(torch.arange(5))
        assert [len(text) for text in texts(targets)] == [length] * 5
    assert DigitLinesData(longer_size=0).further_tests() == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 9}, "max_length=9 must be below 9"),
        ({"min_length": 3, "max_length": 2}, "max_length must be at least 3"),
        ({"size": [30.0, 20.0]}, "size must be a smallest and a largest value"),
        ({"size": [2.0, 20.0]}, r"size must lie in 4\.\.32"),
        ({"gap": [0.0]}, "gap must be a smallest"),
        ({"noise": 300.0}, "noise must lie"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DigitLinesData(**options)

"""The whole judgement of samples, with a classifier, neighbours and pictures."""

import json

import pytest
import torch
from small_features import COUNT

from cvattn.inference import open_classifier
from cvattn.quality import draw_ladder, draw_neighbours, floor, judge, ladder


@pytest.fixture
def test_images(digits, small):
    """Test images of another draw than those that are compared with."""
    at = torch.randperm(360, generator=torch.Generator().manual_seed(0))[:COUNT]
    part = digits.split("test")
    return part.images[at], part.labels[at]


@pytest.fixture(scope="module")
def classifier():
    opened = open_classifier("sagan-digits")
    return lambda pixels: opened.network(opened.normalise(pixels.numpy()))


def test_good_samples_are_good(test_images, small, classifier):
    images, labels = test_images
    found = judge(images, small, labels=labels, classifier=classifier)
    assert found.accuracy.overall > 0.95
    assert found.accuracy.test_overall > 0.95
    assert not found.pixels.alarm
    assert not found.features.alarm
    assert found.pixels.among == 1257
    assert COUNT < found.features.among <= 2 * COUNT
    assert found.features.space == "small"
    assert found.ladder == ()
    assert found.floor == floor(small)
    assert found.samples.frechet.mean < found.floor.distances.frechet.high


def test_bad_samples_are_bad(test_images, small, classifier):
    images, labels = test_images
    wrong = (labels + 1) % 10
    found = judge(images // 3, small, labels=wrong, classifier=classifier)
    for pick in ("frechet", "kernel"):
        mine, theirs = (getattr(each, pick) for each in (found.samples, found.floor.distances))
        assert mine.low > theirs.high
    assert found.accuracy.overall < 0.1
    assert found.accuracy.test_overall > 0.95


def test_copies_of_training_images_raise_both_alarms(digits, small):
    at = small.drawn("train", 1)
    found = judge(digits.split("train").images[at], small)
    assert found.pixels.alarm
    assert found.features.alarm
    assert torch.equal(found.pixels.distances, torch.zeros(COUNT, dtype=torch.float64))
    assert found.accuracy is None
    # The floor does not see it.
    assert found.samples.frechet.mean < 2 * found.floor.distances.frechet.high


def test_copies_of_any_training_image_are_found_by_features_if_all_are_searched(digits, small):
    known = torch.cat([small.drawn("train", draw) for draw in range(2)])
    others = torch.ones(1257, dtype=torch.bool).index_fill(0, known, False).nonzero()[:COUNT, 0]
    copies = digits.split("train").images[others]
    assert not judge(copies, small).features.alarm
    found = judge(copies, small, among=1257).features
    assert found.alarm
    assert found.among == 1257
    assert found.distances.max() < 1e-5
    assert judge(copies, small, among=300).features.among == 300
    with pytest.raises(ValueError, match="among=1258: expected 1 to 1257 training images"):
        judge(copies, small, among=1258)


def test_accuracy_by_class(test_images, small):
    images, labels = test_images
    asked = torch.where(labels == 4, 5, labels)  # no sample is asked to be a 4

    def classifier(pixels):
        """Knows the images, and takes each 7 for a 1."""
        logits = torch.zeros(len(pixels), 10)
        for row, image in zip(logits, pixels, strict=True):
            same = (images == image).flatten(1).all(1).nonzero()
            label = int(labels[same[0]]) if len(same) else 0
            row[1 if label == 7 else label] = 1
        return logits

    found = judge(images, small, labels=asked, classifier=classifier).accuracy
    wrong = int(((labels == 4) | (labels == 7)).sum())
    assert found.overall == pytest.approx(1 - wrong / COUNT)
    assert found.by_class["7"] == 0
    assert found.by_class["4"] is None
    assert found.by_class["3"] == 1
    fives = int((labels == 5).sum()) / int((asked == 5).sum())
    assert found.by_class["5"] == pytest.approx(fives)
    assert list(found.test_by_class) == list("0123456789")


def test_a_ladder_is_kept_and_all_of_it_is_plain_values(test_images, small, tmp_path):
    images, _ = test_images
    rungs = ladder(small)
    found = judge(images, small, ladder=rungs)
    assert (found.floor, *found.ladder) == tuple(rungs)
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert list(told["ladder"]) == [rung.name for rung in rungs[1:]]
    mine = told["distances"]["FD-small"]
    assert mine["mean"] == found.samples.frechet.mean
    assert mine["values"] == list(found.samples.frechet.values)
    assert (mine["count"], mine["size"], mine["weights"]) == (COUNT, 5, "none")
    assert told["neighbours"]["pixels"]["alarm"] is False
    assert told["data"] == {"name": "digits", "fingerprint": small.info.fingerprint}

    train = small.images("train")
    draw_ladder(rungs, tmp_path / "ladder.png", samples=found.samples, title="digits: $x$")
    draw_neighbours(images, found, train, tmp_path / "near.png", count=5)
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 2


def wrong_samples(images, labels):
    return [
        ({"samples": images.float()}, r"samples as uint8 \(173, 3, 32, 32\).* got torch.float32"),
        ({"samples": images[1:]}, r"got torch.uint8 \(172, 3, 32, 32\)"),
        ({"samples": images[:, :1]}, r"got torch.uint8 \(173, 1, 32, 32\)"),
        ({"labels": labels}, "labels without classifier"),
        ({"classifier": torch.nn.Identity()}, "classifier without labels"),
        ({"labels": labels[1:], "classifier": abs}, r"labels as int64 \(173,\), got .*\(172,\)"),
        ({"labels": labels + 1, "classifier": abs}, r"labels must lie in 0\.\.9"),
        (
            {"labels": labels, "classifier": lambda pixels: torch.zeros(len(pixels), 11)},
            r"the classifier gave \(173, 11\) for 173 images of 10 classes",
        ),
    ]


@pytest.mark.parametrize("case", range(8))
def test_what_does_not_fit_is_refused(test_images, small, case):
    change, message = wrong_samples(*test_images)[case]
    samples = change.pop("samples", test_images[0])
    with pytest.raises(ValueError, match=message):
        judge(samples, small, **change)

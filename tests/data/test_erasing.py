"""Random erasing against a direct loop over images."""

import math

import pytest
import torch

from cvattn.data.counter import Stream, uniform
from cvattn.data.images.erasing import RandomErasing

H, W, SEED, EPOCH = 23, 37, 4, 3
INDEX = torch.arange(100, 311)
IMAGES = torch.full((len(INDEX), 3, H, W), 200, dtype=torch.uint8)


@pytest.mark.parametrize(
    "erasing",
    [
        RandomErasing(0.6, fill=(1, 2, 3)),
        RandomErasing(1.0, scale=(0.3, 0.9), ratio=(0.1, 9.0), fill=(1, 2, 3)),
        RandomErasing(1.0, scale=(1e-4, 2e-4), fill=(1, 2, 3)),
    ],
    ids=["usual", "larger than the image", "a pixel"],
)
def test_it_erases_what_a_loop_erases(erasing):
    got = erasing(IMAGES, INDEX, seed=SEED, epoch=EPOCH)
    assert got.dtype == torch.uint8
    erased = cut = 0
    for image, result, i in zip(IMAGES, got, INDEX, strict=True):

        def draw(stream, low=0.0, high=1.0, i=i):
            return low + (high - low) * float(uniform(SEED, EPOCH, i, stream))

        want = image.clone()
        if draw(Stream.ERASE) < erasing.probability:
            area = H * W * draw(Stream.ERASE_AREA, *erasing.scale)
            ratio = math.exp(draw(Stream.ERASE_RATIO, *map(math.log, erasing.ratio)))
            rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            cut += rows > H or columns > W
            rows, columns = max(1, min(H, rows)), max(1, min(W, columns))
            top = int(draw(Stream.ERASE_Y) * (H - rows + 1))
            left = int(draw(Stream.ERASE_X) * (W - columns + 1))
            for channel, colour in enumerate(erasing.fill):
                want[channel, top : top + rows, left : left + columns] = colour
            erased += 1
        assert torch.equal(result, want)
    share = erased / len(INDEX)
    assert abs(share - erasing.probability) < 4 * (0.25 / len(INDEX)) ** 0.5
    assert cut > 50 or erasing.scale[1] < 0.9


def test_rectangles_reach_every_border_and_have_the_areas_asked_for():
    got = RandomErasing(1.0)(IMAGES, INDEX, seed=0, epoch=0) != 200
    touched = got[:, 0].any(0)
    assert touched[0].any()
    assert touched[-1].any()
    assert touched[:, 0].any()
    assert touched[:, -1].any()
    areas = got[:, 0].flatten(1).double().mean(1)
    assert 0.01 < areas.min() < 0.06
    assert 0.25 < areas.max() < 0.36


@pytest.mark.parametrize("size", [1, 16])
def test_the_batch_does_not_matter(size):
    erasing = RandomErasing(0.5)
    whole = erasing(IMAGES, INDEX, seed=9, epoch=2)
    parts = [
        erasing(some, at, seed=9, epoch=2)
        for some, at in zip(IMAGES.split(size), INDEX.split(size), strict=True)
    ]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, erasing(IMAGES, INDEX, seed=9, epoch=3))
    assert not torch.equal(whole, erasing(IMAGES, INDEX, seed=8, epoch=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probability": 1.5}, "random_erasing must lie in 0..1"),
        ({"probability": 1, "scale": (0.5, 0.2)}, "scale must lie in 0.5..1"),
        ({"probability": 1, "ratio": (0.0, 2.0)}, "ratio must lie in"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RandomErasing(**options)

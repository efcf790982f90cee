"""Colour jitter against torchvision's own functions, image by image."""

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from cvattn.data.counter import Stream, uniform
from cvattn.data.images.colour import ColorJitter

H, W, SEED, EPOCH = 11, 17, 4, 3
INDEX = torch.arange(100, 129)
STREAMS = {
    "brightness": Stream.BRIGHTNESS,
    "contrast": Stream.CONTRAST,
    "saturation": Stream.SATURATION,
    "hue": Stream.HUE,
}


def random_images(count: int, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, channels, H, W), generator=generator, dtype=torch.uint8)
    images[0] = images[0, :1]  # a grey one, without a hue
    images[1, 0], images[2, 1:], images[3, :, :5] = 255, 0, 0
    return images


def adjusted(image, index, strengths):
    """As torchvision does it with the factors of that image."""
    for name, strength in strengths.items():
        share = float(uniform(SEED, EPOCH, index, STREAMS[name]))
        low, high = (-strength, strength) if name == "hue" else (max(0, 1 - strength), 1 + strength)
        factor = low + (high - low) * share
        image = getattr(F, f"adjust_{name}")(image, factor)
    return image


ALL = {"brightness": 0.6, "contrast": 0.5, "saturation": 0.9, "hue": 0.5}


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(
    "strengths",
    [
        *({name: strength} for name, strength in ALL.items()),
        ALL,
        {"brightness": 1.7, "hue": 0.07},
        {"contrast": 2.0, "saturation": 3.0},
    ],
    ids=" ".join,
)
def test_it_is_torchvisions_within_a_level(strengths, channels):
    images = random_images(len(INDEX), channels)
    got = ColorJitter(**strengths)(images, INDEX, seed=SEED, epoch=EPOCH)
    assert got.dtype == torch.uint8
    want = torch.stack([adjusted(*pair, strengths) for pair in zip(images, INDEX, strict=True)])
    assert (got.int() - want.int()).abs().max() <= 1
    acts = channels == 3 or strengths.keys() & {"brightness", "contrast"}
    assert torch.equal(got, images) is not bool(acts)


def test_every_colour_turns_as_torchvisions():
    """Extremes and what lies between them, turned by up to half of the circle either way."""
    levels = torch.tensor([0, 1, 2, 63, 64, 127, 128, 200, 254, 255], dtype=torch.uint8)
    image = torch.stack(torch.meshgrid(levels, levels, levels, indexing="ij")).flatten(2)
    images = image.expand(41, -1, -1, -1)
    index = torch.arange(41)
    got = ColorJitter(hue=0.5)(images, index, seed=0, epoch=0)
    for place in range(41):
        shift = float(uniform(0, 0, index[place], Stream.HUE)) - 0.5
        want = F.adjust_hue(image, shift)
        assert (got[place].int() - want.int()).abs().max() <= 1


@pytest.mark.parametrize("size", [1, 7, 16])
def test_the_batch_does_not_matter(size, monkeypatch):
    jitter, images = ColorJitter.of_strength(0.8), random_images(len(INDEX))
    whole = jitter(images, INDEX, seed=9, epoch=2)
    parts = [
        jitter(some, at, seed=9, epoch=2)
        for some, at in zip(images.split(size), INDEX.split(size), strict=True)
    ]
    assert torch.equal(whole, torch.cat(parts))
    monkeypatch.setattr("cvattn.data.images.colour._PIXELS", 5 * 3 * H * W)
    assert torch.equal(whole, jitter(images, INDEX, seed=9, epoch=2))


def test_factors_differ_by_image_epoch_and_seed_and_from_each_other():
    same = random_images(5)[4:].expand(29, -1, -1, -1)
    index = torch.arange(29)
    jitter = ColorJitter.of_strength(0.4)
    base = jitter(same, index, seed=0, epoch=0)
    assert len({image.numpy().tobytes() for image in base}) == 29
    for seed, epoch in ((0, 1), (1, 0)):
        assert not torch.equal(base, jitter(same, index, seed=seed, epoch=epoch))
    drawn = torch.stack([uniform(0, 0, torch.arange(997), each) for each in STREAMS.values()])
    assert torch.corrcoef(drawn).fill_diagonal_(0).abs().max() < 4 / 997**0.5


def test_one_number_is_a_strength():
    assert ColorJitter.of_strength(0.4) == ColorJitter(0.4, 0.4, 0.4, 0.1)
    images = random_images(5)
    assert ColorJitter.of_strength(0)(images, INDEX[:5], seed=0, epoch=0) is images


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: ColorJitter(brightness=-0.1), ValueError, "brightness must lie in"),
        (lambda: ColorJitter(hue=0.6), ValueError, "hue must lie in 0..0.5"),
        (lambda: ColorJitter(contrast="a"), TypeError, "contrast must be a number"),
        (lambda: ColorJitter.of_strength(2.1), ValueError, "color_jitter must lie in 0..2"),
        (lambda: ColorJitter.of_strength(True), TypeError, "color_jitter must be a number"),
    ],
)
def test_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()

"""Random resized crop: torchvision's parts and pixels, by draws of every image's own."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop as Torchvision
from torchvision.transforms.v2 import functional as F

from cvattn.data.image_files import Box, read_part, read_picture
from cvattn.data.images.resized_crop import RandomResizedCrop, scale_into

SHARE = (0.2, 0.9)


def photograph(height, width, channels=3, seed=0):
    """Smooth at a large scale, noisy at a small one."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (7, 5, channels), dtype=np.uint8)
    layers = [Image.fromarray(coarse[..., c]).resize((width, height)) for c in range(channels)]
    noise = rng.integers(-20, 21, (height, width, channels))
    return (np.stack(layers, -1).astype(int) + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(29, 41), (97, 61)])  # made smaller, and larger
def test_pixels_are_those_of_torchvision_and_of_pillow(channels, size):
    pixels = photograph(83, 107, channels)
    crop = RandomResizedCrop(SHARE, size)
    draws = crop.draws(torch.arange(40), seed=3, epoch=2)
    planar = torch.from_numpy(pixels).permute(2, 0, 1)
    picture = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
    for each in draws:
        top, left, height, width = crop.part(each, 83, 107)
        out = np.empty((channels, *size), np.uint8)
        scale_into(out, pixels[top : top + height, left : left + width])
        box, ours = (top, left, height, width), torch.from_numpy(out).int()
        theirs = F.resized_crop(planar, *box, list(size), antialias=True)
        assert (ours - theirs.int()).abs().max() <= 1
        of_pillow = F.pil_to_tensor(F.resized_crop(picture, *box, list(size)))
        assert (ours - of_pillow.int()).abs().max() <= 1


@pytest.mark.parametrize("shape", [(131, 89), (60, 200)])
def test_parts_are_distributed_as_torchvisions(shape):
    height, width = shape
    crop = RandomResizedCrop(SHARE, (31, 31))
    draws = crop.draws(torch.arange(1500), seed=7, epoch=1)
    ours = np.array([crop.part(each, height, width) for each in draws], float)
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = np.array(
        [Torchvision.get_params(image, list(SHARE), [3 / 4, 4 / 3]) for _ in range(1500)], float
    )
    measures = {
        "area": lambda box: box[:, 2] * box[:, 3],
        "ratio": lambda box: box[:, 3] / box[:, 2],
        "y": lambda box: box[:, 0] / (height - box[:, 2] + 1),
        "x": lambda box: box[:, 1] / (width - box[:, 3] + 1),
    }
    for name, measure in measures.items():
        assert ks_2samp(measure(ours), measure(theirs)).pvalue > 1e-3, name
    assert (ours[:, 0] + ours[:, 2]).max() == height  # every row may be shown
    assert (ours[:, 1] + ours[:, 3]).max() == width


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((6, 200), Box(0, 96, 6, 8)),  # too wide: the middle, 4 : 3
        ((200, 6), Box(96, 0, 8, 6)),
        ((1, 1), Box(0, 0, 1, 1)),
        ((1, 500), Box(0, 249, 1, 1)),
    ],
)
def test_where_no_draw_fits_the_largest_part_in_the_middle_is_shown(size, expected):
    crop = RandomResizedCrop((1.0, 1.0), (8, 8))
    image = torch.empty(1, *size)
    theirs = Torchvision.get_params(image, [1.0, 1.0], [3 / 4, 4 / 3])
    for draws in crop.draws(torch.arange(5), seed=0, epoch=0):
        found = crop.part(draws, *size)
        assert found == expected if size != (1, 1) else found == Box(0, 0, 1, 1)
        assert tuple(found) == tuple(theirs)


def test_of_an_oblong_target_the_shape_is_that_of_the_target():
    crop = RandomResizedCrop((0.1, 0.3), (20, 40))
    parts = [crop.part(d, 300, 300) for d in crop.draws(torch.arange(300), seed=0, epoch=0)]
    ratios = np.array([part.width / part.height for part in parts])
    assert 1.45 < ratios.min() < 1.6
    assert 2.5 < ratios.max() < 2.72


def test_draws_are_of_seed_epoch_and_image_alone():
    crop = RandomResizedCrop(SHARE, (8, 8))
    index = torch.tensor([5, 101, 7, 11])
    draws = crop.draws(index, seed=3, epoch=2)
    assert draws.shape == (4, 10, 4)
    assert np.array_equal(draws[1:2], crop.draws(index[1:2], seed=3, epoch=2))
    for other in ({"seed": 4, "epoch": 2}, {"seed": 3, "epoch": 3}):
        assert (crop.draws(index, **other) != draws).all()
    assert len(np.unique(crop.draws(torch.arange(50), seed=0, epoch=0))) == 50 * 10 * 4


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_part_of_a_large_jpeg_is_decoded_at_a_reduced_size(tmp_path, orientation, channels):
    smooth = Image.fromarray(photograph(3, 4)).resize((1301, 907), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[274] = orientation
    smooth.save(tmp_path / "a.jpg", quality=95, exif=exif)
    whole = np.asarray(read_picture(tmp_path / "a.jpg", channels)).reshape(
        *((907, 1301) if orientation in (1, 3) else (1301, 907)), channels
    )
    height, width = whole.shape[:2]
    asked = []

    def choose(h, w):
        asked.append((h, w))
        return Box(101, 203, 401, 350)

    part = read_part(tmp_path / "a.jpg", channels, choose, (49, 42))
    assert asked == [(height, width)]
    assert part.shape[2] == channels
    assert 50 <= part.shape[0] <= 52  # an eighth
    assert 43 <= part.shape[1] <= 45
    reference = Image.fromarray(whole[101:502, 203:553].squeeze()).reduce(8)
    reference = np.asarray(reference.resize(part.shape[1::-1])).reshape(part.shape)
    assert np.abs(reference.astype(int) - part).mean() < 3
    # What is not reduced is what the whole picture has there.
    full = read_part(tmp_path / "a.jpg", channels, lambda h, w: Box(1, 2, 30, 20), (29, 17))
    assert np.array_equal(full, whole[1:31, 2:22])


def test_a_part_of_a_picture_that_lies_on_white(tmp_path):
    clear = np.zeros((11, 17, 4), np.uint8)
    clear[3:, :, 3] = 255
    Image.fromarray(clear).save(tmp_path / "a.png")
    part = read_part(tmp_path / "a.png", 3, lambda h, w: Box(1, 4, 5, 6), (90, 90))
    assert part.shape == (5, 6, 3)
    assert (part[:2] == 255).all()
    assert (part[2:] == 0).all()

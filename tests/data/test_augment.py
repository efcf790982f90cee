"""Augmentation against a slow loop over images and pixels."""

import math

import pytest
import torch
from torch import Tensor

from cvattn.data.counter import Stream, bits, integers, uniform
from cvattn.data.images.augment import Affine, CropFlip
from cvattn.data.info import VOID

H, W = 11, 17


def random_images(count: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, channels, H, W), generator=generator, dtype=torch.uint8)


def reflect(position: int, size: int) -> int:
    while not 0 <= position < size:
        position = -position if position < 0 else 2 * (size - 1) - position
    return position


@pytest.mark.parametrize("flip", ["none", "random", "alternating"])
def test_crop_and_flip_match_a_loop_over_pixels(flip):
    images, index, seed, epoch, pad = random_images(13), torch.arange(100, 113), 4, 3, 5
    got = CropFlip(crop_pad=pad, flip=flip)(images, index, seed=seed, epoch=epoch)
    assert got.dtype == torch.uint8
    flips = []
    for b, i in enumerate(index):
        top = int(integers(seed, epoch, i, Stream.CROP_Y, high=2 * pad + 1)) - pad
        left = int(integers(seed, epoch, i, Stream.CROP_X, high=2 * pad + 1)) - pad
        if flip == "random":
            mirrored = int(bits(seed, epoch, i, Stream.FLIP)) % 2 == 1
        else:
            mirrored = flip != "none" and (int(bits(seed, 0, i, Stream.FLIP)) + epoch) % 2 == 1
        flips.append(mirrored)
        want = torch.empty_like(images[b])
        for h in range(H):
            for w in range(W):
                column = W - 1 - w if mirrored else w
                want[:, h, w] = images[b, :, reflect(h + top, H), reflect(column + left, W)]
        assert torch.equal(got[b], want)
    assert flip == "none" or 0 < sum(flips) < len(flips)


@pytest.mark.parametrize("flip", ["none", "random", "alternating"])
def test_masks_move_with_their_images_and_have_no_class_outside(flip):
    images, index, seed, epoch, pad = random_images(13), torch.arange(100, 113), 4, 3, 5
    masks = images[:, 0] % 7
    augment = CropFlip(crop_pad=pad, flip=flip, cutout=3)
    got, moved = augment.with_masks(images, masks, index, seed=seed, epoch=epoch)
    assert torch.equal(got, augment(images, index, seed=seed, epoch=epoch))
    assert moved.dtype == torch.uint8
    plain = CropFlip(crop_pad=pad, flip=flip)
    place = torch.arange(H * W, dtype=torch.uint8).view(1, 1, H, W).expand(13, -1, -1, -1)
    came_from = plain(place, index, seed=seed, epoch=epoch)[:, 0].long()
    for b, i in enumerate(index):
        top = int(integers(seed, epoch, i, Stream.CROP_Y, high=2 * pad + 1)) - pad
        left = int(integers(seed, epoch, i, Stream.CROP_X, high=2 * pad + 1)) - pad
        inside = torch.zeros(H, W, dtype=torch.bool)
        inside[max(0, -top) : H - max(0, top), max(0, -left) : W - max(0, left)] = True
        mirrored = bool(came_from[b, H // 2, 0] > came_from[b, H // 2, -1])
        inside = inside.flip(1) if mirrored else inside
        want = masks[b].flatten()[came_from[b]].masked_fill(~inside, VOID)
        assert torch.equal(moved[b], want)
    assert 0.05 < (moved == VOID).double().mean() < 0.5


def test_flips_really_flip_half_of_the_images():
    images, index = random_images(1009), torch.arange(1009)
    got = CropFlip(crop_pad=0, flip="random")(images, index, seed=0, epoch=0)
    same = (got == images).flatten(1).all(1)
    mirrored = (got == images.flip(-1)).flatten(1).all(1)
    assert torch.equal(same, ~mirrored)
    assert 430 < mirrored.sum() < 580
    nothing = CropFlip(crop_pad=0, flip="none")(images, index, seed=0, epoch=0)
    assert torch.equal(nothing, images)


def test_alternating_flips_show_each_image_both_ways_in_two_epochs():
    images, index, augment = random_images(101), torch.arange(101), CropFlip(crop_pad=0)
    first, second, third = (augment(images, index, seed=1, epoch=e) for e in range(3))
    assert torch.equal(first, second.flip(-1))
    assert torch.equal(first, third)
    assert not torch.equal(first, images)
    assert not torch.equal(first, images.flip(-1))


@pytest.mark.parametrize("augment", [CropFlip(crop_pad=3), CropFlip(cutout=5), Affine()])
def test_parameters_differ_by_image_epoch_and_seed(augment):
    same = random_images(1).expand(29, -1, -1, -1)  # one picture 29 times: only parameters differ
    index = torch.arange(29)
    base = augment(same, index, seed=0, epoch=0)
    assert len({image.numpy().tobytes() for image in base}) > 20
    for seed, epoch in ((0, 1), (1, 0)):
        assert not torch.equal(base, augment(same, index, seed=seed, epoch=epoch))


@pytest.mark.parametrize("augment", [CropFlip(crop_pad=3, cutout=4), Affine()])
@pytest.mark.parametrize("size", [1, 7, 16])
def test_the_batch_does_not_matter(augment, size):
    images, index = random_images(37), torch.randperm(500)[:37]
    whole = augment(images, index, seed=9, epoch=2)
    parts = [
        augment(images[i : i + size], index[i : i + size], seed=9, epoch=2)
        for i in range(0, 37, size)
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_cutout_erases_one_square_cut_at_the_border():
    images = torch.full((211, 3, H, W), 200, dtype=torch.uint8)
    augment = CropFlip(crop_pad=0, flip="none", cutout=5, fill=(1, 2, 3))
    got = augment(images, torch.arange(211), seed=0, epoch=0)
    sizes, corners = set(), []
    for image in got:
        erased = image[0] == 1
        assert torch.equal(erased, image[1] == 2)
        assert torch.equal(erased, image[2] == 3)
        assert (image[:, ~erased] == 200).all()
        rows, columns = erased.any(1).sum(), erased.any(0).sum()
        assert int(erased.sum()) == int(rows * columns)  # a rectangle, without holes
        sizes.add((int(rows), int(columns)))
        corners.append(erased.nonzero()[0].double())
    assert (5, 5) in sizes
    assert any(min(size) < 5 for size in sizes)
    assert max(max(size) for size in sizes) == 5
    # Down and across are drawn apart: four standard deviations of no correlation.
    assert abs(torch.corrcoef(torch.stack(corners).T)[0, 1]) < 4 / 211**0.5


def test_affine_matches_a_loop_over_pixels():
    images, index, seed, epoch = random_images(5, 2), torch.arange(40, 45), 2, 7
    augment = Affine(shift=2.5, rotation=30.0, scale=0.2)
    got = augment(images, index, seed=seed, epoch=epoch)
    assert got.dtype == torch.float32
    for b, i in enumerate(index):

        def draw(stream, i=i):
            return float(uniform(seed, epoch, i, stream)) * 2 - 1

        angle = math.radians(30) * draw(Stream.ROTATION)
        factor = 1 + 0.2 * draw(Stream.SCALE)
        down, right = 2.5 * draw(Stream.SHIFT_Y), 2.5 * draw(Stream.SHIFT_X)
        want = torch.zeros(2, H, W)
        for h in range(H):
            for w in range(W):
                y, x = h - (H - 1) / 2 - down, w - (W - 1) / 2 - right
                from_x = (x * math.cos(angle) + y * math.sin(angle)) / factor + (W - 1) / 2
                from_y = (y * math.cos(angle) - x * math.sin(angle)) / factor + (H - 1) / 2
                top, left = math.floor(from_y), math.floor(from_x)
                for r in (top, top + 1):
                    for c in (left, left + 1):
                        if 0 <= r < H and 0 <= c < W:
                            weight = (1 - abs(from_y - r)) * (1 - abs(from_x - c))
                            want[:, h, w] += weight * images[b, :, r, c]
        torch.testing.assert_close(got[b], want, atol=0.02, rtol=0)


def test_affine_moves_right_and_down_in_pixels():
    images = torch.zeros(1, 1, H, W, dtype=torch.uint8)
    images[0, 0, 5, 8] = 255  # the centre: rotation and scale leave it
    index, augment = torch.tensor([3]), Affine(shift=4.0)
    got = augment(images, index, seed=0, epoch=0)[0, 0]
    down = 4 * (2 * float(uniform(0, 0, index, Stream.SHIFT_Y)) - 1)
    right = 4 * (2 * float(uniform(0, 0, index, Stream.SHIFT_X)) - 1)
    mass = got / got.sum()
    assert abs(float((mass.sum(1) * torch.arange(H)).sum()) - 5 - down) < 0.1
    assert abs(float((mass.sum(0) * torch.arange(W)).sum()) - 8 - right) < 0.1


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: CropFlip(flip="alternate"), ValueError, "did you mean 'alternating'"),
        (lambda: CropFlip(crop_pad=-1), ValueError, "crop_pad must be at least 0, got -1"),
        (lambda: CropFlip(crop_pad="4"), TypeError, "crop_pad must be a whole number, got '4'"),
        (lambda: CropFlip(cutout=True), TypeError, "cutout must be a whole number"),
        (lambda: Affine(scale=1.0), ValueError, "scale must lie in"),
        (lambda: Affine(rotation="10"), TypeError, "rotation must be a number"),
        (lambda: Affine(shift=math.nan), ValueError, "shift must lie in"),
        (lambda: CropFlip(crop_pad=11).check_fits(H, W), ValueError, "crop_pad=11 must be smaller"),
    ],
)
def test_bad_values_are_refused_by_name(build, error, message):
    with pytest.raises(error, match=message):
        build()

import pytest
import torch

from cvattn.data.images.augment import CropFlip
from cvattn.data.images.rand_augment import RandAugment, in_turn

IMAGES = torch.randint(
    0, 256, (13, 3, 16, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
)
INDEX = torch.arange(40, 53)


def test_it_acts_on_each_image_by_itself_whatever_the_batch():
    augment = RandAugment(operations=2, magnitude=15)
    whole = augment(IMAGES, INDEX, seed=3, epoch=1)
    assert whole.dtype == torch.uint8
    changed = (whole != IMAGES).flatten(1).any(1)
    assert changed.sum() > 8
    part = augment(IMAGES[5:9], INDEX[5:9], seed=3, epoch=1)
    assert torch.equal(part, whole[5:9])
    same = IMAGES[:1].expand(13, -1, -1, -1)
    assert len({image.numpy().tobytes() for image in augment(same, INDEX, seed=3, epoch=1)}) > 6
    assert not torch.equal(whole, augment(IMAGES, INDEX, seed=3, epoch=2))
    assert not torch.equal(whole, augment(IMAGES, INDEX, seed=4, epoch=1))


def test_torchs_own_generator_is_left_alone():
    torch.manual_seed(9)
    state = torch.get_rng_state()
    RandAugment(operations=1)(IMAGES, INDEX, seed=0, epoch=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_in_turn_is_one_after_the_other():
    first, second = RandAugment(operations=1), CropFlip(crop_pad=2, flip="random")
    where = {"seed": 1, "epoch": 2}
    want = second(first(IMAGES, INDEX, **where), INDEX, **where)
    assert torch.equal(in_turn(first, second)(IMAGES, INDEX, **where), want)
    assert torch.equal(RandAugment(operations=0)(IMAGES, INDEX, **where), IMAGES)


@pytest.mark.parametrize(
    ("operations", "magnitude", "message"),
    [(-1, 9, "rand_augment must be at least 0"), (1, 31, "must be at most 30")],
)
def test_refused(operations, magnitude, message):
    with pytest.raises(ValueError, match=message):
        RandAugment(operations=operations, magnitude=magnitude)

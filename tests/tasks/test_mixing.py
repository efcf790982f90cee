import pytest
import torch

from cvattn.tasks.mixing import mixing

IMAGES = torch.stack([torch.full((3, 8, 12), float(value)) for value in range(5)])
LABELS = torch.tensor([0, 1, 2, 3, 4])


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.7, 0.0), (0.0, 1.0), (0.5, 0.5)])
def test_pixels_and_labels_are_mixed_in_one_proportion(mixup, cutmix):
    torch.manual_seed(11)
    images, targets = mixing(mixup, cutmix, 6)(IMAGES, LABELS)
    assert targets.shape == (5, 6)
    torch.testing.assert_close(targets.sum(1), torch.ones(5))
    assert (targets.amax(1) < 1).any()
    # Each image is its own label throughout, so the mean pixel is the mean label.
    torch.testing.assert_close(images.mean((1, 2, 3)), targets @ torch.arange(6.0))
    several = images.flatten(1).var(1) > 0
    if not cutmix:
        assert not several.any()  # blended
    if not mixup:
        assert several.any()  # cut
        assert set(images.unique().tolist()) <= set(range(5))


def test_nothing_asked_nothing_done():
    assert mixing(0.0, 0.0, 6) is None


def test_refused():
    with pytest.raises(ValueError, match=r"cutmix=-0\.5"):
        mixing(0.0, -0.5, 6)

import pytest
import torch

from cvattn.data import views_of

IMAGES = torch.arange(2 * 3 * 5 * 7, dtype=torch.float32).view(2, 3, 5, 7)


def test_the_first_view_is_the_image_and_the_weights_sum_to_one():
    for kind, count in (("none", 1), ("flip", 2), ("flip_shift", 6)):
        views = views_of(IMAGES, kind)
        assert len(views) == count
        assert torch.equal(views[0][1], IMAGES)
        assert sum(weight for weight, _ in views) == 1.0
        assert all(view.shape == IMAGES.shape for _, view in views)


def test_shifts_are_by_one_pixel_with_a_reflected_border():
    views = [view for _, view in views_of(IMAGES, "flip_shift")]
    assert torch.equal(views[1], IMAGES.flip(3))
    assert torch.equal(views[2][..., 1:, 1:], IMAGES[..., :-1, :-1])  # moved down and right
    assert torch.equal(views[2][..., 0, 1:], IMAGES[..., 1, :-1])  # row 1 reflected into row 0
    assert torch.equal(views[4][..., :-1, :-1], IMAGES[..., 1:, 1:])
    assert torch.equal(views[3], views[2].flip(3))
    assert torch.equal(views[5], views[4].flip(3))


def test_other_views_are_refused():
    with pytest.raises(ValueError, match=r"test_views='flips'.*did you mean 'flip'"):
        views_of(IMAGES, "flips")

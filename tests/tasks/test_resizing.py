import pytest
import torch

from cvattn.tasks.resizing import ProgressiveResizing


def test_phases_follow_each_other():
    resize = ProgressiveResizing([(0.5, 0.25), (0.75, 0.5)])
    scales = [resize.scale_at(step / 8) for step in range(8)]
    assert scales == [0.5, 0.5, 0.75, 0.75, 0.75, 0.75, 1.0, 1.0]
    images = torch.randn(2, 3, 13, 22)
    assert resize(images, 0.1).shape == (2, 3, 6, 11)
    assert resize(images, 0.3).shape == (2, 3, 10, 16)
    assert resize(images, 0.75) is images
    assert ProgressiveResizing([])(images, 0.0) is images


def test_whole_patches():
    for scale, size, smaller in (
        (0.75, (224, 112), (160, 80)),  # of 10.5 and 5.25 patches
        (0.25, (16, 112), (16, 32)),  # never less than one
    ):
        resize = ProgressiveResizing([(scale, 0.5)], multiple_of=16)
        images = torch.randn(2, 3, *size)
        assert resize(images, 0.0).shape == (2, 3, *smaller)
        assert resize(images, 0.5) is images
    odd = torch.randn(2, 3, 37, 22)  # not of whole patches: for the network to refuse
    assert resize(odd, 0.5) is odd
    whole = torch.randn(2, 3, 16, 32)  # of which 0.8 is the same again
    assert ProgressiveResizing([(0.8, 1.0)], multiple_of=16)(whole, 0.0) is whole


def test_images_are_shrunk_as_by_an_area():
    """A chessboard becomes grey: what is too fine for the small image does not alias."""
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(24), indexing="ij")
    board = ((rows + columns) % 2).float()[None, None]
    small = ProgressiveResizing([(0.5, 1.0)])(board, 0.0)
    assert small.shape == (1, 1, 8, 12)
    assert (small[..., 1:-1, 1:-1] - 0.5).abs().max() < 0.05
    slope = ProgressiveResizing([(0.5, 1.0)])(columns.float()[None, None], 0.0)
    torch.testing.assert_close(slope[0, 0, 3, 2:-2], 2 * torch.arange(2.0, 10.0) + 0.5)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([(1.5, 0.5)], r"scale 1\.5 must be in \(0, 1\]"),
        ([(0.0, 0.5)], "scale 0"),
        ([(0.5, 0.0)], r"share 0\.0 .*positive"),
        ([(0.5, 0.75), (0.75, 0.5)], r"sum to 1\.25"),
    ],
)
def test_refused(phases, message):
    with pytest.raises(ValueError, match=message):
        ProgressiveResizing(phases)

"""Controls cost what the attention that they stand for costs."""

import pytest
import torch

from cvattn.cost import count_macs
from cvattn.models.controls import BLOCKS, ConvolutionControl, WideConvolution


@pytest.mark.parametrize("channels", [32, 64, 96, 128])
@pytest.mark.parametrize("size", [(7, 9), (16, 13)])
@pytest.mark.parametrize(
    ("control", "form"), [(ConvolutionControl, "common"), (WideConvolution, "unet")]
)
def test_equal_multiplications(control, form, channels, size):
    x = torch.zeros(1, channels, *size)
    positions = size[0] * size[1]
    attention = count_macs(BLOCKS[form](channels), x)
    convolution = count_macs(control(channels, positions=positions), x)
    # Half a channel between the two convolutions: what rounding may take.
    filters = 18 if control is ConvolutionControl else 50
    assert abs(convolution - attention) <= 0.5 * filters * channels * positions


def test_a_wide_filter_reaches_as_far_as_it_says():
    block = WideConvolution(12, positions=17 * 13, kernel_size=5, dilation=3)
    torch.nn.init.normal_(block.out.weight)
    block.norm = torch.nn.Identity()  # which mixes all positions
    x = torch.randn(1, 12, 17, 13)
    moved = x.clone()
    moved[..., 8, 6] += 1.0
    rows, columns = (block(moved) - block(x)).abs().sum(1)[0].nonzero().unbind(1)
    assert (rows.min(), rows.max()) == (2, 14)
    assert (columns.min(), columns.max()) == (0, 12)


def test_it_begins_as_the_identity_and_refuses_even_filters():
    x = torch.randn(2, 12, 5, 7)
    assert torch.equal(WideConvolution(12, positions=35)(x), x)
    with pytest.raises(ValueError, match="kernel_size=4 must be odd"):
        WideConvolution(12, positions=35, kernel_size=4)

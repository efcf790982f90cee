"""The learning proof: a task that needs to look everywhere, and is learned by what can.

A 6x10 map of four random colours, one pixel marked; every pixel must name the marked pixel's
colour. Mostly the marked pixel is farther away than a 3x3 convolution can see. Chance: 0.25.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvattn.blocks import SelfAttention2d

HEIGHT, WIDTH, COLOURS, CHANNELS = 6, 10, 4, 16


def puzzles(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Maps (B, 5, 6, 10), one-hot colours and a mark; the colours (B,) of the marked pixels."""
    pixels = HEIGHT * WIDTH
    colours = torch.randint(COLOURS, (batch, pixels), generator=generator)
    marked = torch.randint(pixels, (batch, 1), generator=generator)
    image = torch.zeros(batch, COLOURS + 1, pixels)
    image[:, :COLOURS] = F.one_hot(colours, COLOURS).mT
    image[:, COLOURS].scatter_(1, marked, 1.0)
    return image.unflatten(2, (HEIGHT, WIDTH)), colours.gather(1, marked)[:, 0]


def accuracy_after_training(middle: nn.Module, seed: int) -> float:
    """150 steps of AdamW, then the share of right pixels on maps that were never seen."""
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(COLOURS + 1, CHANNELS, 1), nn.GELU(), middle, nn.Conv2d(CHANNELS, COLOURS, 1)
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(150):
        image, colour = puzzles(64, generator)
        target = colour[:, None, None].expand(-1, HEIGHT, WIDTH)
        loss = F.cross_entropy(network(image), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    image, colour = puzzles(512, generator)
    with torch.no_grad():
        return (network(image).argmax(1) == colour[:, None, None]).double().mean().item()


FORMS = {
    "common": lambda: SelfAttention2d(CHANNELS),
    "biggan": lambda: SelfAttention2d.biggan(CHANNELS, spectral_norm=False),
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 17, 29])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_attention_finds_the_marked_pixel(form, seed):
    torch.manual_seed(seed)
    assert accuracy_after_training(form(), seed) >= 0.95


@pytest.mark.parametrize("seed", [3, 17, 29])
def test_convolutions_do_not(seed):
    torch.manual_seed(seed)
    # In the block's place, with more parameters than it has.
    middle = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.GELU())
    assert 0.25 < accuracy_after_training(middle, seed) <= 0.5

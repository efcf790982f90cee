"""Rectified flow: from noise to images along straight paths, and the way along them.

A sample is on the way from noise at time 0 to an image at time 1, ``x = (1 - t) noise + t image``;
the network says the velocity ``image - noise`` that it expects there (Liu, Gong and Liu, "Flow
Straight and Fast", 2022; Lipman et al., "Flow Matching for Generative Modeling", 2023, with
sigma_min = 0). What is made is found by following the velocity from 0 to 1.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

Solver = Literal["euler", "heun"]
# images (B, C, H, W), times (B,) in 0..1 and labels (B,), or None -> velocities (B, C, H, W).
Velocity = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Watch = Callable[[Tensor, float], None]  # samples and their time


def unwatched(samples: Tensor, time: float) -> None:
    """Where nobody looks at the samples on their way."""


def on_the_way(noise: Tensor, images: Tensor, times: Tensor) -> Tensor:
    """Where samples (B, C, H, W) are at ``times`` (B,)."""
    share = times.view(-1, *[1] * (images.ndim - 1))
    return (1.0 - share) * noise + share * images


def draw_noise(count: int, shape: tuple[int, ...], *, seed: int) -> Tensor:
    """``(count, *shape)`` float32 from a standard normal, on the CPU; more only adds to the end."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randn(shape, generator=generator) for _ in range(count)])


class Guided:
    """A velocity that goes beyond its class: ``v + (guidance - 1) (v - v without a class)``.

    Classifier-free guidance (Ho and Salimans, 2022); ``guidance`` is their 1 + w. Twice the cost,
    but at 1, which changes nothing.

    Args:
        velocity: of a network that has learned with and without labels.
        guidance: 1 for none, more for samples that are more of their class and more alike.
        no_label: the label that means none.
    """

    def __init__(self, velocity: Velocity, *, guidance: float, no_label: int) -> None:
        self.velocity = velocity
        self.guidance = guidance
        self.no_label = no_label

    def __call__(self, images: Tensor, times: Tensor, labels: Tensor | None) -> Tensor:
        if self.guidance == 1.0:
            return self.velocity(images, times, labels)
        if labels is None:
            raise ValueError(f"guidance={self.guidance} goes towards a class; labels are needed")
        none = torch.full_like(labels, self.no_label)
        both = self.velocity(
            torch.cat([images, images]), torch.cat([times, times]), torch.cat([labels, none])
        )
        of_class, of_none = both.chunk(2)
        return of_class + (self.guidance - 1.0) * (of_class - of_none)


@torch.no_grad()
def generate(
    velocity: Velocity,
    noise: Tensor,
    labels: Tensor | None = None,
    *,
    steps: int = 20,
    solver: Solver = "heun",
    watch: Watch = unwatched,
) -> Tensor:
    """Follow the velocity from noise to images in equal steps.

    Args:
        velocity: a network in eval mode, or a :class:`Guided` one.
        noise: (B, C, H, W), where the ways begin.
        labels: (B,) int64, or None for a network without classes.
        steps: how many; the solver "euler" asks the network once for each, "heun" twice, but once
            for the last: what is asked at time 1 sees no noise and so does not say which to remove;
            the mean with it would leave half (Karras et al., "Elucidating the Design Space of
            Diffusion-Based Generative Models", 2022, do so too).
        watch: called with the samples and their time, at 0 and after each step.

    Returns:
        (B, C, H, W), images as the network has learned them: normalised.

    Raises:
        ValueError: an unknown solver, or no steps.
    """
    if solver not in get_args(Solver):
        raise ValueError(f"solver={solver!r}; expected one of {get_args(Solver)}")
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    x = noise
    watch(x, 0.0)
    for step in range(steps):
        x = _stepped(velocity, x, labels, step / steps, (step + 1) / steps, solver)
        watch(x, (step + 1) / steps)
    return x


@torch.no_grad()
def complete(
    velocity: Velocity,
    noise: Tensor,
    images: Tensor,
    known: Tensor,
    labels: Tensor | None = None,
    *,
    steps: int = 20,
    solver: Solver = "heun",
    rounds: int = 5,
    seed: int = 0,
    watch: Watch = unwatched,
) -> Tensor:
    """Fill what is hidden of images so that it fits the rest; what is known stays, bit for bit.

    After each step the known pixels are put where they are at that time. So that the rest can
    follow them, each step is made ``rounds`` times, with noise that leads back to its beginning in
    between (Lugmayr et al., "RePaint", 2022, there for diffusion).

    Args:
        velocity, noise, labels, steps, solver, watch: as in :func:`generate`.
        images: (B, C, H, W), normalised.
        known: bool (B, 1, H, W), True where the image is known.
        rounds: 1 makes each step once.
        seed: of the noise on the ways back; another than that of ``noise``.
    """
    if known.dtype != torch.bool or known.shape != (len(images), 1, *images.shape[2:]):
        raise ValueError(
            f"known is {known.dtype} of shape {tuple(known.shape)}; expected bool of shape "
            f"{(len(images), 1, *images.shape[2:])}, True where the image is known"
        )
    if steps < 1 or rounds < 1:
        raise ValueError(f"steps={steps} and rounds={rounds} must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    x = noise
    watch(x, 0.0)
    for step in range(steps):
        begin, end = step / steps, (step + 1) / steps
        for again in range(rounds if end < 1.0 else 1):
            if again:
                fresh = torch.randn(x.shape, generator=generator).to(x)
                x = _back(x, end, begin, fresh)
            x = _stepped(velocity, x, labels, begin, end, solver)
            x = torch.where(known, (1.0 - end) * noise + end * images, x)
        watch(x, end)
    return torch.where(known, images, x)


def _stepped(
    velocity: Velocity, x: Tensor, labels: Tensor | None, begin: float, end: float, solver: Solver
) -> Tensor:
    size = end - begin
    slope = velocity(x, x.new_full((len(x),), begin), labels)
    straight = x + size * slope
    if solver == "euler" or end == 1.0:
        return straight
    return x + size * 0.5 * (slope + velocity(straight, x.new_full((len(x),), end), labels))


def _back(x: Tensor, now: float, then: float, fresh: Tensor) -> Tensor:
    """From time ``now`` to an earlier one: as much of the image and of noise as it has there."""
    share = then / now
    rest = ((1.0 - then) ** 2 - (share * (1.0 - now)) ** 2) ** 0.5
    return share * x + rest * fresh

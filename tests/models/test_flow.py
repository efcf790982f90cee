"""Solvers, guidance and completion on a flow whose velocity is known in closed form."""

import itertools
from functools import partial

import pytest
import torch
from oracles import assert_near

from cvattn.models.flow import Guided, complete, draw_noise, generate, on_the_way

MEAN = torch.tensor([0.7, -1.1, 0.2], dtype=torch.float64).view(1, 3, 1, 1)
SPREAD = 0.6


def to_a_gaussian(x, times, labels):
    """The velocity if images are N(MEAN, SPREAD²), independent for each pixel.

    x_t = (1-t) e + t (MEAN + SPREAD n), so E[image - noise | x_t] is linear in x_t - t MEAN.
    """
    t = times.view(-1, 1, 1, 1)
    variance = (1 - t) ** 2 + (t * SPREAD) ** 2
    return MEAN + (t * SPREAD**2 - (1 - t)) / variance * (x - t * MEAN)


def noise(count=5, size=(2, 3), channels=3):
    return draw_noise(count, (channels, *size), seed=3).double()


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_the_way_ends_in_the_images_and_gets_better_with_the_order_of_the_solver(solver, order):
    begin = noise()
    # Of two Gaussians, the flow is linear: it shifts and scales.
    want = MEAN + SPREAD * begin
    errors = []
    for steps in (40, 80, 160):
        made = generate(to_a_gaussian, begin, steps=steps, solver=solver)
        errors.append(float((made - want).abs().max()))
    rates = [torch.log2(torch.tensor(a / b)) for a, b in itertools.pairwise(errors)]
    assert all(abs(rate - order) < 0.2 for rate in rates), (errors, rates)


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("steps", [1, 3])
def test_no_noise_is_left_where_there_is_one_image(solver, steps):
    """The best guess of what the velocity is at time 1 knows nothing of the noise."""
    image = noise() + 2

    def velocity(x, times, labels):
        t = times.view(-1, 1, 1, 1)
        left = torch.where(t < 1, (x - t * image) / (1 - t).clamp(min=1e-9), 0.0)
        return image - left

    assert_near(generate(velocity, noise(), steps=steps, solver=solver), image)


def test_on_the_way_is_noise_at_0_and_the_image_at_1():
    begin, images = noise(), noise() + 1
    times = torch.tensor([0.0, 1.0, 0.25, 0.5, 0.75], dtype=torch.float64)
    x = on_the_way(begin, images, times)
    assert torch.equal(x[0], begin[0])
    assert torch.equal(x[1], images[1])
    assert_near(x[2], 0.75 * begin[2] + 0.25 * images[2])


def test_guidance_goes_beyond_the_class_and_1_asks_once():
    calls = []

    def velocity(x, times, labels):
        calls.append(len(x))
        return labels.double().view(-1, 1, 1, 1).expand_as(x)

    x, labels = noise(), torch.tensor([0, 1, 2, 1, 0])
    guided = Guided(velocity, guidance=2.5, no_label=7)(x, x.new_zeros(5), labels)
    for found, label in zip(guided, labels.tolist(), strict=True):
        assert_near(found, torch.full_like(found, 7 + 2.5 * (label - 7)))
    plain = Guided(velocity, guidance=1.0, no_label=7)(x, x.new_zeros(5), labels)
    assert torch.equal(plain[:, 0, 0, 0], labels.double())
    assert calls == [10, 5]


def pairs(x, times, labels):
    """The velocity if of images of two pixels both are the same N(0, 1) number, but for 0.1."""
    covariance = torch.tensor([[1.0, 0.99], [0.99, 1.0]], dtype=torch.float64)
    flat = x.flatten(1)
    t = float(times[0])
    mixed = t**2 * covariance + (1 - t) ** 2 * torch.eye(2, dtype=torch.float64)
    slope = t * covariance - (1 - t) * torch.eye(2, dtype=torch.float64)
    return (flat @ (slope @ torch.linalg.inv(mixed)).T).view_as(x)


def test_what_is_completed_fits_what_is_known():
    begin = draw_noise(400, (1, 1, 2), seed=5).double()
    images = draw_noise(400, (1, 1, 2), seed=6).double()
    known = torch.zeros(400, 1, 1, 2, dtype=torch.bool)
    known[..., 0] = True
    together = {}
    for rounds in (1, 10):
        made = complete(pairs, begin, images, known, steps=20, rounds=rounds)
        assert torch.equal(made[..., 0], images[..., 0])
        together[rounds] = float(torch.corrcoef(made.view(400, 2).T)[0, 1])
    # The true one is 0.99; noise that leads back lets the hidden pixel follow the known one.
    assert together[10] > 0.95
    assert together[10] > together[1] + 0.02


def test_all_known_is_what_was_given_and_all_hidden_is_made():
    begin, images = noise(), noise() + 1
    everything = torch.ones(5, 1, 2, 3, dtype=torch.bool)
    assert torch.equal(complete(to_a_gaussian, begin, images, everything), images)
    made = complete(to_a_gaussian, begin, images, ~everything, rounds=1)
    assert torch.equal(made, generate(to_a_gaussian, begin))


def test_more_noise_only_adds_to_the_end():
    shape = (3, 5, 7)
    assert torch.equal(draw_noise(11, shape, seed=2)[:4], draw_noise(4, shape, seed=2))
    assert not torch.equal(draw_noise(4, shape, seed=3), draw_noise(4, shape, seed=2))


def test_who_watches_sees_the_samples_at_each_time():
    begin = noise()
    everything = torch.ones(5, 1, 2, 3, dtype=torch.bool)
    images = noise() + 1
    for make in (
        partial(generate, lambda x, t, y: images - begin, begin),
        partial(complete, to_a_gaussian, begin, images, everything, rounds=3),
    ):
        seen = []
        make(steps=4, watch=lambda x, time, seen=seen: seen.append((time, x)))
        assert [time for time, _ in seen] == [0.0, 0.25, 0.5, 0.75, 1.0]
        for time, x in seen:
            assert_near(x, begin + time * (images - begin))


def test_refusals():
    with pytest.raises(ValueError, match=r"guidance=2\.0 goes towards a class; labels are needed"):
        generate(Guided(to_a_gaussian, guidance=2.0, no_label=3), noise())
    with pytest.raises(ValueError, match="solver='rk4'; expected one of"):
        generate(to_a_gaussian, noise(), solver="rk4")
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        generate(to_a_gaussian, noise(), steps=0)
    with pytest.raises(
        ValueError, match=r"known is torch.float64 of shape \(5, 3, 2, 3\); expected"
    ):
        complete(to_a_gaussian, noise(), noise(), noise())
    known = torch.ones(5, 1, 2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="rounds=0 must be at least 1"):
        complete(to_a_gaussian, noise(), noise(), known, rounds=0)

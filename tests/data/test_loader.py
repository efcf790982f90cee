"""The loader: an order of (seed, epoch) alone, disjoint and complete parts, for prime sizes."""

import types

import pytest
import torch
from oracles import assert_accurate

from cvattn.data.images.augment import CropFlip
from cvattn.data.loader import BatchLoader, check_world_size

N, H, W = 103, 6, 9


@pytest.fixture(scope="module")
def arrays():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (N, 3, H, W), generator=generator, dtype=torch.uint8)
    return images, torch.arange(N) % 7


def make(arrays, **changes):
    settings = {
        "batch_size": 12,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.1),
        "seed": 5,
        "augment": CropFlip(crop_pad=2, cutout=3) if changes.get("train") else None,
    }
    return BatchLoader(*arrays, **(settings | changes))


def test_pixels_are_normalised(arrays):
    (images, labels), (got, got_labels) = arrays, next(iter(make(arrays, batch_size=N)))
    mean, std = (torch.tensor(c).view(3, 1, 1) for c in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.1)))
    assert got.dtype == torch.float32
    assert_accurate(got, lambda x, mean, std: (x / 255 - mean) / std, images.float(), mean, std)
    assert torch.equal(got_labels, labels)


@pytest.mark.parametrize("batch_size", [1, 12, 60, 103, 500])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_evaluation_gives_every_image_once(arrays, batch_size, world_size):
    loaders = [
        make(arrays, batch_size=batch_size, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    parts = [torch.cat(loader.batch_indices()) for loader in loaders]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(N))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for loader in loaders:
        sizes = [len(index) for index in loader.batch_indices()]
        assert len(loader) == len(sizes) == len(list(loader))
        assert 0 < min(sizes) <= max(sizes) <= batch_size
    if batch_size > 1:  # with batches of one the longer part must have a batch more
        assert len({len(loader) for loader in loaders}) == 1


@pytest.mark.parametrize("batch_size", [12, 30, 60, 120, 6000])
@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_training_parts_are_disjoint_and_form_the_global_batches(arrays, batch_size, world_size):
    loaders = [
        make(arrays, batch_size=batch_size, rank=r, world_size=world_size, train=True)
        for r in range(world_size)
    ]
    one = make(arrays, batch_size=batch_size, train=True).batch_indices(4)
    steps = list(zip(*(loader.batch_indices(4) for loader in loaders), strict=True))
    assert len(steps) == len(one) == len(loaders[0]) == max(N // batch_size, 1)
    for whole, parts in zip(one, steps, strict=True):
        assert torch.equal(torch.cat(parts), whole)
        assert max(map(len, parts)) - min(map(len, parts)) <= (batch_size > N)
    seen = torch.cat(one)
    assert (
        len(seen.unique()) == len(seen) == (N if batch_size > N else N // batch_size * batch_size)
    )


def pixels_by_image(loader, epoch):
    return {
        int(i): image
        for index in loader.batch_indices(epoch)
        for i, image in zip(index, loader.batch(index, epoch)[0], strict=True)
    }


def test_neither_batch_size_nor_ranks_change_an_image(arrays):
    one = pixels_by_image(make(arrays, train=True), 3)
    several = [make(arrays, train=True, batch_size=30, rank=r, world_size=3) for r in range(3)]
    found = {}
    for loader in several:
        found |= pixels_by_image(loader, 3)
    shared = one.keys() & found.keys()
    assert len(shared) > 70
    assert all(torch.equal(one[i], found[i]) for i in shared)
    other_epoch = pixels_by_image(make(arrays, train=True), 4)
    changed = [
        i for i in one.keys() & other_epoch.keys() if not torch.equal(one[i], other_epoch[i])
    ]
    assert len(changed) > 70


def test_iteration_asks_for_the_epoch_each_time_and_can_be_repeated(arrays):
    clock = types.SimpleNamespace(epoch=0)
    loader = make(arrays, train=True, epoch=lambda: clock.epoch)
    first, again = list(loader), list(loader)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    clock.epoch = 1
    assert not torch.equal(first[0][1], next(iter(loader))[1])


def test_the_order_depends_on_the_seed_and_the_dropped_tail_changes(arrays):
    loader = make(arrays, train=True)
    order = torch.cat(loader.batch_indices(0))
    assert not torch.equal(order, torch.cat(make(arrays, train=True, seed=6).batch_indices(0)))
    dropped = [set(range(N)) - set(torch.cat(loader.batch_indices(e)).tolist()) for e in (0, 1)]
    assert len(dropped[0]) == N % 12
    assert dropped[0] != dropped[1]


def test_no_global_random_state_is_used(arrays):
    before = torch.get_rng_state()
    list(make(arrays, train=True))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"batch_size": 100, "world_size": 3, "train": True}, ValueError, "nearest .*: 99 and 102"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be a whole number"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank=2 must lie in 0..1"),
        ({"mean": (0.5,)}, ValueError, "one value for each of 3 channels, got 1 and 3"),
        ({"batch_size": 206, "world_size": 206, "train": True}, ValueError, "cannot be shared"),
    ],
)
def test_bad_values_are_refused(arrays, changes, error, message):
    with pytest.raises(error, match=message):
        make(arrays, **changes)


def test_arrays_of_the_wrong_kind_are_refused(arrays):
    images, labels = arrays
    for bad in (images.float(), images[0], images[:-1]):
        with pytest.raises(ValueError, match="images must be uint8"):
            make((bad, labels))


def test_a_batch_smaller_than_the_processes_names_what_fits():
    with pytest.raises(ValueError, match=r"nearest that are: 4$"):
        check_world_size(3, 4)

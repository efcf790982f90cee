"""Each class equally often: counts, replacement, independence of processes and batches."""

import numpy as np
import pytest
import torch
from PIL import Image

from cvattn.data import FolderData
from cvattn.data.balance import balanced_order
from cvattn.data.images.augment import CropFlip
from cvattn.data.images.colour import ColorJitter
from cvattn.data.images.rand_augment import in_turn
from cvattn.data.loader import BatchLoader

COUNTS = {0: 71, 2: 5, 3: 13, 5: 1}  # of class 1 and 4 there are none
N = sum(COUNTS.values())
CLASSES = torch.cat([torch.full((n,), label) for label, n in COUNTS.items()])[
    torch.randperm(N, generator=torch.Generator().manual_seed(3))
]


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_classes_come_equally_often_and_within_each_nothing_twice_before_all_once(epoch):
    draws = balanced_order(CLASSES, seed=5, epoch=epoch)
    assert draws.shape == (N,)
    assert len(draws.unique()) == N  # no draw twice, so no augmentation
    places = draws % N
    labels = CLASSES[places]
    for label, count in COUNTS.items():
        drawn = places[labels == label]
        assert len(drawn) in (N // 4, N // 4 + 1)
        for start in range(0, len(drawn), count):
            part = drawn[start : start + count]
            assert len(part.unique()) == len(part)
        again = draws[labels == label] // N
        assert again.tolist() == [turn // count for turn in range(len(drawn))]


def test_every_round_has_each_class_once_in_an_order_of_its_own():
    labels = CLASSES[balanced_order(CLASSES, seed=5, epoch=0) % N]
    rounds = labels[: N // 4 * 4].view(-1, 4)
    assert (rounds.sort(1).values == torch.tensor(list(COUNTS))).all()
    assert len({tuple(each) for each in rounds.tolist()}) > 10


def test_it_is_a_function_of_seed_and_epoch():
    order = balanced_order(CLASSES, seed=5, epoch=2)
    assert torch.equal(order, balanced_order(CLASSES, seed=5, epoch=2))
    assert not torch.equal(order, balanced_order(CLASSES, seed=6, epoch=2))
    assert not torch.equal(order, balanced_order(CLASSES, seed=5, epoch=3))
    # Of the large class another part each epoch.
    parts = [set((balanced_order(CLASSES, seed=5, epoch=e) % N).tolist()) for e in range(20)]
    assert len(set.union(*parts)) == N > max(map(len, parts))


def loader(**changes):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (N, 3, 6, 9), generator=generator, dtype=torch.uint8)
    augment = in_turn(CropFlip(crop_pad=2, flip="random"), ColorJitter(0.5))
    settings = {"mean": (0.5,) * 3, "std": (0.2,) * 3, "seed": 5, "augment": augment}
    settings |= {"train": True, "balanced": True, "batch_size": 12}
    return BatchLoader(images, CLASSES, **(settings | changes))


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_batches_of_one(world_size):
    one = list(loader(epoch=lambda: 3))
    ranks = [loader(rank=r, world_size=world_size, epoch=lambda: 3) for r in range(world_size)]
    assert len(one) == N // 12 == len(ranks[0])
    for whole, *parts in zip(one, *ranks, strict=True):
        for at in (0, 1):
            assert torch.equal(whole[at], torch.cat([part[at] for part in parts]))


def test_what_is_behind_is_not_seen_again():
    whole = list(loader(epoch=lambda: 2))
    rest = list(loader(epoch=lambda: 2, behind=lambda: 3))
    assert len(rest) == len(whole) - 3
    for a, b in zip(whole[3:], rest, strict=True):
        assert torch.equal(a[0], b[0])


def test_an_image_that_comes_again_is_augmented_anew():
    alone = (CLASSES == 5).nonzero().item()
    batches = loader(batch_size=N)
    (images, labels), (index,) = next(iter(batches)), batches.batch_indices(0)
    again = images[labels == 5]
    assert len(again) == N // 4 + 1 or len(again) == N // 4
    assert (index[labels == 5] % N == alone).all()
    assert len({image.numpy().tobytes() for image in again}) == len(again)


def test_a_plain_order_is_as_it_was():
    plain = loader(balanced=False)
    index = torch.cat(plain.batch_indices(4))
    assert torch.equal(plain.positions(index), index)
    assert len(index.unique()) == len(index)
    counts = CLASSES[torch.cat(loader().batch_indices(4)) % N].bincount()
    assert counts[counts > 0].tolist() == [22, 21, 21, 20] or counts[counts > 0].max() <= 22
    assert CLASSES[index].bincount()[0] > 60


def test_a_folders_training_is_balanced_and_its_evaluation_is_not(tmp_path):
    for part, counts in {"train": (30, 4), "test": (5, 3)}.items():
        for name, count in zip("ab", counts, strict=True):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i}.png")
    data = FolderData(
        root=tmp_path, image_size=8, batch_size=6, balanced_sampling=True, eval_batch_size=3
    )
    labels = torch.cat([labels for _, labels in data.train_dataloader()])
    assert labels.bincount().tolist() == [15, 15]
    assert data.class_counts.tolist() == [27, 3]
    labels = torch.cat([labels for _, labels in data.test_dataloader()])
    assert labels.tolist() == [0] * 5 + [1] * 3
    with pytest.raises(TypeError, match="balanced_sampling must be true or false, got 1"):
        FolderData(root=tmp_path, balanced_sampling=1)


@pytest.mark.parametrize("hold", ["memory", "mapped", "stream"])
@pytest.mark.parametrize("crop", [None, [0.2, 0.7]])
def test_however_pictures_are_held(tmp_path, hold, crop):
    """Rare ones come again, each time as another part of them, and no others are missed."""
    generator = np.random.default_rng(0)
    for part, counts in {"train": (41, 3), "val": (1, 1), "test": (1, 1)}.items():
        for name, count in zip("ab", counts, strict=True):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 255, (15, 23, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    options = {"image_size": [8, 13], "batch_size": 10, "crop_pad": 2, "mean": [0.5] * 3}
    options |= {"std": [0.2] * 3, "random_resized_crop": crop, "balanced_sampling": True}
    data = FolderData(root=tmp_path, hold=hold, **options)
    loader = data.train_dataloader()
    batches, indices = list(loader), loader.batch_indices(0)
    assert torch.cat([labels for _, labels in batches]).bincount().tolist() == [20, 20]
    for (images, labels), index in zip(batches, indices, strict=True):
        again = loader.batch(index, 0)
        assert torch.equal(again[0], images)
        assert torch.equal(labels, data.split("train").labels[index % 44])
    rare = torch.cat([images[labels == 1] for images, labels in batches])
    assert len({image.numpy().tobytes() for image in rare}) > 15  # of 3 pictures

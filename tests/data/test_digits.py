"""The embedded digits: their split, their constants, their pixels."""

import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from cvattn.data import DigitsData
from cvattn.data.images.base import channel_statistics


@pytest.fixture(scope="module")
def data():
    module = DigitsData(batch_size=32)
    module.setup()
    return module


def test_description_agrees_with_what_is_read(data):
    before, after = DigitsData().describe(), data.info
    assert (after.train_size, after.val_size, after.test_size) == (1257, 180, 360)
    assert (before.train_size, before.classes, before.mean) == (1257, after.classes, after.mean)
    assert before.fingerprint == ""
    assert len(after.fingerprint) == 16
    assert data.describe() is after
    assert "writers are mixed" in after.source
    for name in ("train", "val", "test"):
        assert data.split(name).images.shape[1:] == (3, *after.image_size)


def test_constants_are_those_of_the_training_images(data):
    mean, std = channel_statistics(data.split("train").images)
    np.testing.assert_allclose(mean, data.info.mean, atol=1e-6)
    np.testing.assert_allclose(std, data.info.std, atol=1e-6)
    images = torch.cat([x for x, _ in DigitsData(shift=0, rotation=0, scale=0).train_dataloader()])
    assert abs(images.mean()) < 0.01
    assert abs(images.std() - 1) < 0.01


def test_the_split_is_disjoint_complete_stratified_and_pinned(data):
    bunch = load_digits()
    parts = {name: data.split(name) for name in ("train", "val", "test")}
    # The mean of each 4 x 4 block lies near the original pixel: every image is found once.
    assert sum(len(part.images) for part in parts.values()) == len(bunch.images)
    counts = torch.stack([part.labels.bincount(minlength=10) for part in parts.values()])
    assert torch.equal(counts.sum(0), torch.from_numpy(bunch.target).bincount())
    for row, size in zip(counts, (1257, 180, 360), strict=True):
        assert (row - counts.sum(0) * size / 1797).abs().max() < 2
    everything = [i.numpy().tobytes() for part in parts.values() for i in part.images]
    assert len(set(everything)) == len({i.tobytes() for i in bunch.images})
    digest = hashlib.sha256(parts["test"].labels.numpy().tobytes()).hexdigest()
    assert digest[:16] == "2490127917889192"
    other_seed = DigitsData(seed=77)
    other_seed.setup()
    assert torch.equal(other_seed.split("test").images, parts["test"].images)


def test_digits_are_upright_and_not_mirrored(data):
    """Half-pixel bilinear upscaling of the originals, done again in NumPy."""
    bunch = load_digits()
    at = (np.arange(32) + 0.5) / 4 - 0.5
    low = np.clip(np.floor(at).astype(int), 0, 7)
    high, part = np.clip(low + 1, 0, 7), np.clip(at - np.floor(at), 0, 1)
    part[at < 0] = 0
    known = set()
    for image in bunch.images:
        rows = image[low] * (1 - part)[:, None] + image[high] * part[:, None]
        full = rows[:, low] * (1 - part) + rows[:, high] * part
        known.add(np.rint(full * 255 / 16).astype(np.uint8).tobytes())
    for name in ("train", "val", "test"):
        images = data.split(name).images
        assert torch.equal(images[:, 0], images[:, 2])
        assert all(image[1].numpy().tobytes() in known for image in images)


def test_examples_are_fixed_and_turn_back_into_pixels(data):
    images, labels, index = data.example_images(13)
    again = DigitsData(seed=9).example_images(13)
    assert all(torch.equal(a, b) for a, b in zip((images, labels, index), again, strict=True))
    assert len(index.unique()) == 13
    assert not torch.equal(index, torch.arange(13))
    raw = data.split("val")
    assert torch.equal(labels, raw.labels[index])
    pixels = data.denormalise(images)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, raw.images[index].permute(0, 2, 3, 1).numpy())
    assert np.array_equal(data.denormalise(images[0]), pixels[0])
    assert len(data.example_images(1000, split="test")[0]) == 360
    with pytest.raises(ValueError, match="did you mean 'test'"):
        data.example_images(3, split="tset")


def test_evaluation_is_not_augmented(data):
    (images, labels), raw = next(iter(data.val_dataloader())), data.split("val")
    assert np.array_equal(data.denormalise(images), raw.images.permute(0, 2, 3, 1).numpy())
    assert torch.equal(labels, raw.labels)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"scale": 2}, "scale must"), ({"rotation": -1}, "rotation must")]
)
def test_bad_values_stop_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        DigitsData(**arguments)

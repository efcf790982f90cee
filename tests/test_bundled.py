"""The small trained networks that come with the package."""

import pytest
import torch

import cvattn
from cvattn.checkpoint import BUNDLED
from cvattn.data import DigitsData
from cvattn.maps import attention_modules


def test_there_are_two():
    assert list(BUNDLED) == ["sagan-digits", "vit-digits"]


@pytest.mark.parametrize("name", BUNDLED)
def test_they_are_small_and_reach_what_they_say(name):
    assert BUNDLED[name].stat().st_size < 2_000_000
    network = cvattn.load(name)
    assert attention_modules(network)
    assert not network.training
    data = DigitsData()
    data.setup("test")
    images, labels, _ = data.example_images(1000, split="test")
    with torch.no_grad():
        right = (network(images).argmax(-1) == labels).sum().item()
    assert len(labels) == 360
    # One image may lie on the edge and fall to another side on another machine.
    assert abs(right - 360 * network.meta["test_accuracy"]) <= 1.5
    assert network.meta["test_accuracy"] > 0.97
    assert "/" not in str(network.meta["config"])  # no folder of the machine that trained it


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vit-digits").write_bytes(b"mine")
    with pytest.raises(cvattn.checkpoint.CheckpointError, match="is not a checkpoint"):
        cvattn.load("vit-digits")

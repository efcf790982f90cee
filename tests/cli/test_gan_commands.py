"""What the commands do with a GAN: sample, judge, explore, export, and what they refuse."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from small_networks import write_gan, write_unet

import cvattn
from cvattn.cli import main
from cvattn.cli.exported_call import open_call
from cvattn.cli.exported_files import FORMATS
from cvattn.data.image_files import read_picture
from cvattn.inference import GANWay, InferenceError, open_generator
from cvattn.inference.gan_generator import truncated


@pytest.fixture
def gan(tmp_path):
    return write_gan(tmp_path / "gan.ckpt")


def sampled(path, folder, *arguments) -> dict[str, np.ndarray]:
    output = ["-o", str(folder.with_suffix(".png")), "--each", str(folder)]
    assert main(["sample", str(path), *output, *arguments]) == 0
    read_picture(folder.with_suffix(".png"), 3)
    return {file.stem: np.asarray(read_picture(file, 3)) for file in sorted(folder.iterdir())}


def test_the_same_command_makes_the_same_images_and_a_class_each_in_turn(gan, tmp_path, capsys):
    made = sampled(gan, tmp_path / "a", "-n", "5")
    assert list(made) == ["00000_shirt", "00001_a_bag", "00002_boot", "00003_shirt", "00004_a_bag"]
    assert "5 images, seed 0" in capsys.readouterr().out
    again = sampled(gan, tmp_path / "b", "-n", "5")
    assert all(np.array_equal(made[name], again[name]) for name in made)
    boots = sampled(gan, tmp_path / "c", "-n", "3", "--class", "boot")
    assert np.array_equal(boots["00002_boot"], made["00002_boot"])
    assert not np.array_equal(boots["00000_boot"], made["00000_shirt"])
    for options in (["--seed", "1"], ["--truncation", "0.5"]):
        changed = sampled(gan, tmp_path / options[0].strip("-"), "-n", "5", *options)
        assert not np.array_equal(changed["00000_shirt"], made["00000_shirt"])


def test_pixels_are_those_of_the_generator(gan):
    generator = open_generator(gan)
    pixels, labels = generator.sample(2, classes=[1], way=GANWay(seed=5))
    draw = torch.Generator().manual_seed(5)
    noise = torch.stack([torch.randn(5, generator=draw) for _ in range(2)])
    with torch.no_grad():
        made = generator.network.generator(noise, torch.tensor([1, 1]))  # in [-1, 1]
    assert labels.tolist() == [1, 1]
    wanted = (255 * (made + 1) / 2).round().to(torch.uint8).numpy()
    assert np.abs(pixels.astype(int) - wanted).max() <= 1  # they go through mean and std


def test_truncated_noise_is_a_cut_normal_distribution_of_the_same_ranks():
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(2))
    for most in (0.3, 1.0, 2.5):
        cut = truncated(noise, most)
        assert cut.abs().max() <= most
        assert (cut[noise.argsort()].diff() >= 0).all()
        inside = noise[noise.abs() < most]
        quantiles = torch.linspace(0.05, 0.95, 19)
        apart = torch.quantile(cut, quantiles) - torch.quantile(inside, quantiles)
        assert apart.abs().max() < 0.05


def test_images_between_two_noises(gan, tmp_path):
    ways = sampled(gan, tmp_path / "ways", "-n", "2", "--between", "4")
    assert [name.partition("_")[2] for name in ways] == ["shirt"] * 4 + ["a_bag"] * 4
    generator = open_generator(gan)
    noise = generator.noise(4)
    ends = generator.from_noise(noise, torch.tensor([0, 1, 0, 1]))
    rows = list(ways.values())
    for end, place in zip(ends, (0, 4, 3, 7), strict=True):
        assert np.array_equal(end.transpose(1, 2, 0), rows[place].reshape(16, 20, 3))
    with Image.open(tmp_path / "ways.png") as picture:
        assert picture.width > picture.height  # rows of four


def test_noise_between_is_as_long_as_its_ends(gan, monkeypatch):
    generator, seen = open_generator(gan), []
    monkeypatch.setattr(
        type(generator), "from_noise", lambda self, noise, labels: seen.append(noise)
    )
    generator.between(3, steps=5)
    noise = seen[0].view(3, 5, 5)
    begin, end = generator.noise(6).view(2, 3, 5)
    assert torch.allclose(noise[:, 0], begin, atol=1e-6)
    assert torch.allclose(noise[:, -1], end, atol=1e-6)
    # On a great circle the middle has equal angles to both ends.
    middle = noise[:, 2]
    cosines = [torch.cosine_similarity(middle, x, dim=-1) for x in (begin, end)]
    assert torch.allclose(*cosines, atol=1e-5)


def test_a_page_of_where_both_networks_look(gan, tmp_path, capsys):
    target = tmp_path / "page.html"
    assert main(["explore", str(gan), "--count", "3", "-o", str(target)]) == 0
    assert "3 images, 2 blocks" in capsys.readouterr().out
    text = target.read_text()
    layer = ("--layer", "generator.attention1")
    assert "score" in text
    assert "boot" in text
    assert main(["explore", str(gan), "--count", "1", "-o", str(target), *layer]) == 0
    assert "1 images, 1 blocks" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("classes", [3, 0])
@pytest.mark.parametrize("to", ["onnx", "torchexport"])
def test_the_exported_generator_makes_the_same_images(to, classes, tmp_path, capsys):
    if to == "onnx":
        pytest.importorskip("onnxruntime", reason="pip install -e '.[export]'")
    path = write_gan(tmp_path / "gan.ckpt", classes=classes)
    assert main(["export", str(path), "--to", to]) == 0
    printed = capsys.readouterr().out
    assert "noise (batch, 5), float32: from a standard normal distribution" in printed
    assert "images (batch, 3, 16, 20)" in printed
    assert ("labels (batch,) int64: 0 to 2 for a class\n" in printed) == bool(classes)
    form, network = FORMATS[to], cvattn.load(path)
    made = form.open(path.with_suffix(form.suffix), open_call(str(path)))
    noise = torch.randn(4, 5)
    given = (noise, torch.tensor([2, 0, 1, 1])) if classes else (noise,)
    with torch.no_grad():
        wanted = network(*given)
    assert (made(*given) - wanted).abs().max() <= 1e-4 * wanted.abs().max()


REFUSED = [
    (["sample", "GAN", "--steps", "3"], "--steps: a SAGAN makes images otherwise; it has --trunc"),
    (["sample", "GAN", "--guidance", "2"], "it has --truncation, --seed"),
    (["sample", "GAN", "--truncation", "0"], "truncation=0.0 must be more than 0"),
    (["sample", "GAN", "--complete", "x.png", "--mask", "left"], "a SAGAN makes whole images only"),
    (["sample", "GAN", "--between", "1"], "expected at least 2 images, the ends of a way"),
    (["sample", "GAN", "--class", "boots"], "no such class.*boot"),
    (["sample", "UNET", "--truncation", "1"], "a UNet makes images otherwise; it has --steps"),
    (["sample", "UNET", "--between", "4"], "a UNet makes each image by itself"),
    (["explore", "GAN", "x.png"], "a SAGAN makes whole images only"),
    (["predict", "GAN", "x.png"], "a SAGAN that makes images and names none"),
]


@pytest.mark.parametrize(("arguments", "said"), REFUSED)
def test_what_is_for_others_is_refused_by_name(arguments, said, gan, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = {"GAN": str(gan), "UNET": str(write_unet(tmp_path / "unet.ckpt"))}
    assert main([paths.get(text, text) for text in arguments]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "samples.png").exists()


def test_a_network_that_is_of_no_use(tmp_path):
    path = write_gan(tmp_path / "gan.ckpt")
    generator = open_generator(path)
    with torch.no_grad():
        next(generator.network.generator.parameters()).fill_(float("nan"))
    with pytest.raises(InferenceError):
        generator.sample(2)

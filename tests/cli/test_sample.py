"""``cvattn sample``: the same images for the same command, classes in turn, completions."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_networks import UNET, UNET_META, write_unet
from torch import nn

from cvattn import checkpoint
from cvattn.cli import main
from cvattn.data.image_files import read_picture
from cvattn.inference import InferenceError, Way, open_generator
from cvattn.models import flow

SIZE = tuple(UNET_META["image_size"])


@pytest.fixture
def unet(tmp_path):
    return write_unet(tmp_path / "unet.ckpt")


def sampled(path, folder, *arguments) -> dict[str, np.ndarray]:
    """Each image that the command writes, by its file's name."""
    output = ["-o", str(folder.with_suffix(".png")), "--each", str(folder), "--steps", "3"]
    assert main(["sample", str(path), *output, *arguments]) == 0
    read_picture(folder.with_suffix(".png"), 3)
    return {file.stem: np.asarray(read_picture(file, 3)) for file in sorted(folder.iterdir())}


def test_the_same_command_makes_the_same_images_and_a_class_each_in_turn(unet, tmp_path, capsys):
    made = sampled(unet, tmp_path / "a", "-n", "7")
    assert list(made) == [
        *("00000_shirt", "00001_a_bag", "00002_boot", "00003_shirt"),
        *("00004_a_bag", "00005_boot", "00006_shirt"),
    ]
    assert "7 images, 3 steps of heun, guidance 1, seed 0" in capsys.readouterr().out
    again = sampled(unet, tmp_path / "b", "-n", "7")
    assert all(np.array_equal(made[name], again[name]) for name in made)
    others = sampled(unet, tmp_path / "c", "-n", "7", "--seed", "1")
    assert not any(np.array_equal(made[name], others[name]) for name in made)
    assert all(image.shape == (*SIZE, 3) for image in made.values())
    # What a class, another solver and guidance change, of the same noise.
    boots = sampled(unet, tmp_path / "d", "-n", "3", "--class", "boot")
    assert list(boots) == ["00000_boot", "00001_boot", "00002_boot"]
    assert np.array_equal(boots["00002_boot"], made["00002_boot"])
    assert not np.array_equal(boots["00000_boot"], made["00000_shirt"])
    for options in (["--solver", "euler"], ["--guidance", "3"]):
        changed = sampled(unet, tmp_path / options[0].strip("-"), "-n", "7", *options)
        assert not np.array_equal(changed["00000_shirt"], made["00000_shirt"])


def test_pixels_are_those_of_the_network_followed_by_hand(unet):
    generator = open_generator(unet)
    pixels, labels = generator.sample(2, classes=[1], way=Way(steps=4, solver="euler", seed=5))
    assert labels.tolist() == [1, 1]
    noise = torch.Generator().manual_seed(5)
    x = torch.stack([torch.randn(3, *SIZE, generator=noise) for _ in range(2)])
    with torch.no_grad():
        for step in range(4):
            x = x + generator.network(x, torch.full((2,), step / 4), torch.tensor([1, 1])) / 4
    mean, std = (torch.tensor(UNET_META[name]).view(3, 1, 1) for name in ("mean", "std"))
    want = ((x * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    assert np.abs(pixels.astype(int) - want.numpy().astype(int)).max() <= 1  # a rounded half
    assert (pixels != want.numpy()).mean() < 0.02


def test_completions_keep_what_is_known_and_differ_elsewhere(unet, tmp_path, capsys):
    pixels = np.random.default_rng(3).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "given.png")
    hidden = np.zeros(SIZE, np.uint8)
    hidden[1:4, 2:9] = 255
    Image.fromarray(hidden).save(tmp_path / "mask.png")
    for mask, known in (
        (str(tmp_path / "mask.png"), hidden == 0),
        ("right", np.arange(10) < np.full((6, 1), 5)),
        ("top", np.broadcast_to(np.arange(6)[:, None] >= 3, SIZE)),
    ):
        folder = tmp_path / f"hidden_{int((~known).sum())}"
        made = sampled(
            *(unet, folder, "--complete", str(tmp_path / "given.png"), "--mask", mask),
            *("-n", "3", "--rounds", "2", "--class", "boot"),
        )
        assert list(made) == ["given_0", "given_1", "given_2"]
        for image in made.values():
            assert np.array_equal(image[known], pixels[known])
            assert not np.array_equal(image[~known], pixels[~known])
        assert not np.array_equal(made["given_0"], made["given_1"])
    assert "what of it was kept, and 3 completions of it" in capsys.readouterr().out


def test_a_completion_goes_back_with_other_noise_than_it_began_with(unet, monkeypatch):
    generator, back, fresh = open_generator(unet), flow._back, []

    def seen(x, now, then, noise):
        fresh.append(noise)
        return back(x, now, then, noise)

    monkeypatch.setattr(flow, "_back", seen)
    pixels, known = np.zeros((1, 3, *SIZE), np.uint8), np.zeros((1, *SIZE), bool)
    generator.complete(pixels, known, rounds=3, way=Way(steps=2, seed=4))
    began = flow.draw_noise(1, (3, *SIZE), seed=4)
    assert len(fresh) == 2
    for noise in fresh:
        together = torch.stack([noise.flatten(), began.flatten()])
        assert abs(torch.corrcoef(together)[0, 1]) < 0.3
    assert not torch.equal(*fresh)


def test_a_completion_without_a_class_is_told_none(unet, tmp_path):
    """The label behind the last class: by the functions that are underneath."""
    generator = open_generator(unet)
    pixels = np.random.default_rng(5).integers(0, 256, (2, 3, *SIZE), dtype=np.uint8)
    known = np.broadcast_to(np.arange(SIZE[1]) < 4, (2, *SIZE)).copy()
    way = Way(steps=3, seed=2)
    made = generator.complete(pixels, known, way=way, rounds=1)
    for label, same in ((3, True), (0, False)):
        images = flow.complete(
            generator.network,
            flow.draw_noise(2, (3, *SIZE), seed=2),
            generator.normalise(pixels),
            torch.from_numpy(known).unsqueeze(1),
            torch.full((2,), label),
            steps=3,
            rounds=1,
        )
        want = generator.pixels(images).transpose(0, 3, 1, 2)
        assert np.array_equal(made, np.where(known[:, None], pixels, want)) == same
    with pytest.raises(InferenceError, match=r"guidance=2\.0 goes towards a class: say which"):
        generator.complete(pixels, known, way=Way(guidance=2.0))


def test_no_class_is_for_networks_that_have_learned_without(unet, tmp_path, capsys):
    network = open_generator(unet).network
    meta = {**UNET_META, "config": {"task": {"label_dropout": 0.0}}}
    path = tmp_path / "always_told.ckpt"
    checkpoint.save(path, network, args=UNET | {"classes": 3}, meta=meta)
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "x.png")
    completed = ["--complete", str(tmp_path / "x.png"), "--mask", "left"]
    for options in (["--guidance", "2"], completed):
        command = ["sample", str(path), "-o", str(tmp_path / "y.png"), *options]
        assert main(command) == 2
        assert "never learned without a class (task.label_dropout=0)" in capsys.readouterr().err
    assert main([*command, "--class", "boot", "-n", "1", "--steps", "2"]) == 0


def test_a_network_that_is_told_no_class(tmp_path, capsys):
    path = write_unet(tmp_path / "free.ckpt", classes=0)
    assert list(sampled(path, tmp_path / "a", "-n", "2")) == ["00000", "00001"]
    for options, said in (
        (["--class", "boot"], "told no class"),
        (["--guidance", "2"], "this network is told none"),
    ):
        assert main(["sample", str(path), "-o", str(tmp_path / "a.png"), *options]) == 2
        assert said in capsys.readouterr().err


def test_refusals_name_what_is_wrong_and_write_nothing(unet, sagan, tmp_path, capsys):
    black = tmp_path / "black.png"
    Image.new("L", SIZE[::-1]).save(black)
    Image.new("L", (4, 4)).save(tmp_path / "small.png")
    given = ["--complete", str(black)]
    for arguments, said in (
        ([str(sagan[0])], "SAGANClassifier that makes no images"),
        ([str(unet), "--class", "bot"], "no such class; did you mean boot?"),
        ([str(unet), "-n", "0"], "count=0 must be at least 1"),
        ([str(unet), "--steps", "0"], "--steps 0 must be at least 1"),
        ([str(unet), *given], "--complete IMAGE... and --mask go together"),
        ([str(unet), "--mask", "left"], "--complete IMAGE... and --mask go together"),
        ([str(unet), *given, "--mask", "lft"], "no such file; expected left, right"),
        ([str(unet), *given, "--mask", str(black)], "is black throughout"),
        ([str(unet), *given, "--mask", str(tmp_path / "small.png")], "is 4 x 4; the network's"),
        ([str(unet), "-o", str(tmp_path / "x.jpg")], "ends in .png"),
    ):
        output = [] if "-o" in arguments else ["-o", str(tmp_path / "new.png")]
        assert main(["sample", *arguments, *output]) == 2, arguments
        assert said in capsys.readouterr().err
    assert not (tmp_path / "new.png").exists()


def test_a_network_of_no_use_says_so(tmp_path, capsys):
    path = write_unet(tmp_path / "unet.ckpt")
    generator = open_generator(path)
    nn.init.constant_(generator.network.head.weight, float("nan"))
    checkpoint.save(path, generator.network, args=UNET | {"classes": 3}, meta=UNET_META)
    assert main(["sample", str(path), "-n", "2", "-o", str(tmp_path / "x.png")]) == 1
    assert not (tmp_path / "x.png").exists()


def test_other_commands_say_what_makes_images_is_for(unet, tmp_path, capsys):
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "x.png")
    assert main(["predict", str(unet), str(tmp_path / "x.png")]) == 2
    assert "makes images and names none; python -m cvattn sample" in capsys.readouterr().err

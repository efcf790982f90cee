"""Pictures through a network's own preprocessing, and what the page shows of them."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms as t
from torchvision.transforms import v2

from cvattn import SelfAttention2d, explore
from cvattn.explorer.pictures import as_seen, normalisation_of
from cvattn.inference import InferenceError

MEAN, STD = [0.31, 0.47, 0.52], [0.23, 0.19, 0.29]
STEPS = t.Compose([t.Resize(14), t.CenterCrop((11, 13)), t.ToTensor(), t.Normalize(MEAN, STD)])


def network():
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), SelfAttention2d(8)).eval()


@pytest.fixture
def photo():
    pixels = np.random.default_rng(3).integers(40, 200, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((29, 23))


def wanted(photo):
    return np.asarray(t.CenterCrop((11, 13))(t.Resize(14)(photo)))


def test_files_pil_images_and_pixels_are_shown_as_the_network_sees_them(photo, tmp_path):
    photo.save(tmp_path / "a.png")
    pixels = torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1)[None]
    for images, name in (
        (tmp_path, "a.png"),
        (photo, "image 0"),
        ([photo], "image 0"),
        (pixels, "image 0"),
    ):
        page = explore(network(), images, preprocess=STEPS)
        assert abs(page.content.pictures[0].astype(int) - wanted(photo)).max() <= 1
        assert page.content.captions[0]["name"] == name
    same = explore(network(), STEPS(photo)[None]).content.weights.seen[0][0]
    assert np.array_equal(page.content.weights.seen[0][0].shares, same.shares)


@pytest.mark.parametrize(
    "preprocess",
    [
        STEPS,
        t.Compose([t.Compose([t.Resize((11, 13)), t.ToTensor()]), t.Normalize(MEAN, STD)]),
        v2.Compose(
            [
                v2.Resize((11, 13)),
                v2.ToImage(),
                v2.ToDtype(torch.float32, True),
                v2.Normalize(MEAN, STD),
            ]
        ),
        nn.Sequential(nn.Identity(), t.Normalize(torch.tensor(MEAN), torch.tensor(STD))),
    ],
    ids=["Compose", "nested", "v2", "Sequential"],
)
def test_the_normalising_step_is_found(preprocess):
    mean, std = normalisation_of(preprocess)
    assert (mean, std) == (pytest.approx(MEAN), pytest.approx(STD))


def test_the_presets_of_torchvision_and_timm_say_it_too():
    from timm.data.transforms_factory import create_transform
    from torchvision.models import ViT_B_16_Weights

    for preset, mean in (
        (ViT_B_16_Weights.IMAGENET1K_V1.transforms(), [0.485, 0.456, 0.406]),
        (create_transform((3, 32, 32), mean=MEAN, std=STD), MEAN),
    ):
        assert normalisation_of(preset)[0] == pytest.approx(mean)


def test_what_is_not_known_is_stretched_from_black_to_white(photo):
    twice = t.Compose([*STEPS.transforms, t.Normalize([0.1] * 3, [0.5] * 3)])
    after = t.Compose([*STEPS.transforms, t.Lambda(lambda x: 3 * x)])
    for preprocess in (lambda picture: STEPS(picture), twice, after):
        shown = explore(network(), photo, preprocess=preprocess).content.pictures[0]
        assert (shown.min(), shown.max()) == (0, 255)
        # The same picture all the same, but for brightness and contrast.
        for channel, want in zip(shown.T, wanted(photo).T, strict=True):
            assert np.corrcoef(channel.ravel(), want.ravel())[0, 1] > 0.99
    plain = t.Compose(STEPS.transforms[:-1])  # steps that are known to leave pixels in 0..1
    shown = explore(network(), photo, preprocess=plain).content.pictures[0]
    assert abs(shown.astype(int) - wanted(photo)).max() <= 1


def test_other_channels_are_shown_by_their_mean():
    images = torch.randn(2, 5, 3, 4)
    shown = as_seen(images, ([0.5], [0.25]))
    assert shown.shape == (2, 3, 4, 1)
    assert [(each.min(), each.max()) for each in shown] == [(0, 255)] * 2


def test_mistakes(photo, tmp_path):
    (tmp_path / "b.png").write_text("no image")
    for images, preprocess, said in (
        (torch.zeros(1, 3, 8, 8), STEPS, "preprocess makes .* not torch.float32"),
        (None, STEPS, "not NoneType"),
        ([photo, "a.png"], STEPS, "either PIL images or paths"),
        ([], STEPS, "name one file at least"),
        (tmp_path / "b.png", STEPS, "b.png: not an image"),
        (torch.zeros(1, 5, 8, 8, dtype=torch.uint8), STEPS, "uint8 .B, 1 or 3, H, W"),
        (photo, np.asarray, "preprocess gave ndarray; expected a float tensor"),
        (photo, t.PILToTensor(), r"preprocess gave torch.uint8 \(3, 23, 29\)"),
        ([photo, photo.resize((30, 40))], t.ToTensor(), "different sizes"),
        ([photo], None, "give preprocess=, .* not list"),
    ):
        with pytest.raises(InferenceError, match=said):
            explore(network(), images, preprocess=preprocess)

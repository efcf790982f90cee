"""All augmentations of a configuration together, and a user's own transforms."""

import dataclasses

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from cvattn.data import FolderData
from cvattn.data.counter import Stream, bits
from cvattn.data.images.augment import CropFlip
from cvattn.data.images.colour import ColorJitter
from cvattn.data.images.erasing import RandomErasing
from cvattn.data.images.own_transforms import OwnTransforms
from cvattn.data.images.photographs import PhotoAugmentation
from cvattn.data.images.rand_augment import RandAugment, TrivialAugment

H, W = 13, 19
IMAGES = torch.randint(
    0, 256, (17, 3, H, W), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
)
INDEX = torch.arange(40, 57)
WHERE = {"seed": 3, "epoch": 2}
NOTHING = PhotoAugmentation(crop_pad=0, flip="none")
BLUR = v2.RandomApply([v2.GaussianBlur(3)], p=0.5)
STEPS = {
    "rand_augment": (2, RandAugment(2)),
    "trivial_augment": (True, TrivialAugment()),
    "color_jitter": (0.4, ColorJitter(0.4, 0.4, 0.4, 0.1)),
    "transforms": ([BLUR], OwnTransforms((BLUR,))),
    "crop_pad": (3, CropFlip(crop_pad=3, flip="none")),
    "flip": ("random", CropFlip(crop_pad=0, flip="random")),
    "cutout": (5, CropFlip(crop_pad=0, flip="none", cutout=5, fill=(7, 8, 9))),
    "random_erasing": (0.5, RandomErasing(0.5, fill=(7, 8, 9))),
}


def test_nothing_is_nothing():
    assert torch.equal(NOTHING.filling((0, 0, 0))(IMAGES, INDEX, **WHERE), IMAGES)


@pytest.mark.parametrize("name", STEPS)
def test_each_acts_alone(name):
    value, step = STEPS[name]
    got = dataclasses.replace(NOTHING, **{name: value}).filling((7, 8, 9))(IMAGES, INDEX, **WHERE)
    assert got.dtype == torch.uint8
    assert torch.equal(got, step(IMAGES, INDEX, **WHERE))
    assert not torch.equal(got, IMAGES)


@pytest.mark.parametrize("first", ["rand_augment", "trivial_augment"])
def test_together_they_come_in_the_order_that_is_written_down(first):
    chosen = {name: STEPS[name] for name in (first, "color_jitter", "transforms")}
    both = CropFlip(crop_pad=3, flip="random", cutout=5, fill=(7, 8, 9))
    want = IMAGES
    for step in (*(step for _, step in chosen.values()), both, STEPS["random_erasing"][1]):
        want = step(want, INDEX, **WHERE)
    values = {name: value for name, (value, _) in chosen.items()}
    augment = PhotoAugmentation(
        **values, crop_pad=3, flip="random", cutout=5, random_erasing=0.5
    ).filling((7, 8, 9))
    whole = augment(IMAGES, INDEX, **WHERE)
    assert torch.equal(whole, want)
    parts = [
        augment(some, at, **WHERE) for some, at in zip(IMAGES.split(5), INDEX.split(5), strict=True)
    ]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(
    ("ours", "theirs", "stream"),
    [
        (TrivialAugment(), v2.TrivialAugmentWide(), Stream.TRIVIAL_AUGMENT),
        (OwnTransforms((v2.GaussianNoise(sigma=0.1), BLUR)), None, Stream.TRANSFORMS),
    ],
    ids=["trivial", "own"],
)
def test_an_image_gets_what_torchvision_makes_of_it_from_its_own_state(ours, theirs, stream):
    theirs = theirs or v2.Compose(ours.transforms)
    state = torch.get_rng_state()
    got = ours(IMAGES, INDEX, **WHERE)
    assert torch.equal(torch.get_rng_state(), state)
    for image, key, result in zip(IMAGES, bits(3, 2, INDEX, stream).tolist(), got, strict=True):
        torch.manual_seed(key)
        assert torch.equal(result, theirs(image.clone()))
    same = IMAGES[:1].expand(17, -1, -1, -1)
    assert len({image.numpy().tobytes() for image in ours(same, INDEX, **WHERE)}) > 8
    assert not torch.equal(got, ours(IMAGES, INDEX, seed=3, epoch=3))
    assert not torch.equal(got, ours(IMAGES, INDEX, seed=4, epoch=2))


def test_grey_images_are_trivially_augmented_too():
    grey = IMAGES[:, :1]
    got = TrivialAugment()(grey, INDEX, **WHERE)
    assert got.shape == grey.shape
    assert (got != grey).flatten(1).any(1).sum() > 5


def test_images_are_left_as_they_are():
    class Writes(v2.Transform):
        def transform(self, inpt, params):
            return inpt.fill_(3)

    before = IMAGES.clone()
    assert (OwnTransforms((Writes(),))(IMAGES, INDEX, **WHERE) == 3).all()
    assert torch.equal(IMAGES, before)


class Fails(v2.Transform):
    def transform(self, inpt, params):
        raise KeyError("no such thing")


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([v2.ToDtype(torch.float32, scale=True)], r"ToDtype, makes torch\.float32.*normalised"),
        ([v2.Normalize([0.5] * 3, [0.2] * 3)], r"transforms\[0\], Normalize, cannot be used"),
        (
            [BLUR, v2.CenterCrop(5)],
            r"transforms\[1\], CenterCrop, makes \(3, 5, 5\) of an image \(3",
        ),
        ([v2.RandomZoomOut(p=0.5)], "RandomZoomOut, makes"),
        ([v2.Grayscale()], r"Grayscale, makes \(1, 13, 19\).*channels must stay"),
        ([v2.ToPILImage()], "ToPILImage, makes Image of an image"),
        ([v2.CutMix(num_classes=3)], "CutMix, cannot be used"),
        ([Fails()], "Fails, cannot be used on an image.*no such thing"),
    ],
    ids=["floats", "normalised", "cut", "sometimes larger", "grey", "pil", "batches", "broken"],
)
def test_what_makes_no_image_of_an_image_is_refused_before_data_is_read(
    transforms, message, tmp_path
):
    with pytest.raises(ValueError, match=message):
        FolderData(root=tmp_path / "nowhere", image_size=[H, W], transforms=transforms)


def test_what_is_seen_only_in_a_training_image_is_refused_there():
    class Rarely(v2.Transform):
        def transform(self, inpt, params):
            return inpt[:, 1:] if inpt.any() else inpt

    own = OwnTransforms((Rarely(),))
    own.check_fits(3, H, W)
    with pytest.raises(ValueError, match=r"Rarely, makes \(3, 12, 19\)"):
        own(IMAGES, INDEX, **WHERE)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"transforms": ["GaussianBlur"]},
            TypeError,
            r"transforms\[0\]='GaussianBlur': expected a",
        ),
        ({"transforms": [{"_target_": "os.system"}]}, TypeError, "expected a torchvision"),
        ({"transforms": [torch.nn.Identity()]}, TypeError, "expected a torchvision"),
        ({"trivial_augment": 1}, TypeError, "trivial_augment must be true or false"),
        ({"trivial_augment": True, "rand_augment": 2}, ValueError, "choose one"),
        ({"color_jitter": -1}, ValueError, "color_jitter must lie in"),
        ({"random_erasing": 2}, ValueError, "random_erasing must lie in"),
        ({"rand_augment_magnitude": 31}, ValueError, "must be at most 30"),
        ({"flip": "alternate"}, ValueError, "did you mean 'alternating'"),
    ],
)
def test_wrong_values_are_refused_by_name(options, error, message):
    with pytest.raises(error, match=message):
        PhotoAugmentation(**options)


def test_a_folders_training_images_go_through_all_of_it_and_no_others(tmp_path):
    for part, count in {"train": 8, "test": 2}.items():
        for name in ("a", "b"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = IMAGES[(i + 5 * (name == "b")) % 17].permute(1, 2, 0).numpy()
                Image.fromarray(pixels).save(folder / f"{i}.png")
    options = {
        "crop_pad": 2, "color_jitter": 0.4, "random_erasing": 1.0, "transforms": [BLUR],
        "trivial_augment": True,
    }  # fmt: skip
    data = FolderData(root=tmp_path, image_size=[H, W], batch_size=7, seed=5, **options)
    loader = data.train_dataloader()
    images = data.split("train").images
    fill = tuple(round(255 * value) for value in data.info.mean)
    index = torch.arange(len(images))
    want = PhotoAugmentation(**options).filling(fill)(images, index, seed=5, epoch=1)
    assert torch.equal(loader.batch(index, 1)[0], loader.normalised(want))
    plain = FolderData(root=tmp_path, image_size=[H, W])
    for name in ("val_dataloader", "test_dataloader"):
        for ours, theirs in zip(getattr(data, name)(), getattr(plain, name)(), strict=True):
            assert torch.equal(ours[0], theirs[0])

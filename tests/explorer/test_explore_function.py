"""explore() as a library: any network, any kind of images, one page that a notebook shows."""

import html
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import cvattn
from cvattn import SelfAttention2d, capture_attention, explore
from cvattn.inference import InferenceError


class Own(nn.Module):
    """A network that says nothing of itself; maps of 11 x 7 positions."""

    def __init__(self, channels=5, classes=None):
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Conv2d(channels, 8, 3, padding=1)
        self.attention = SelfAttention2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = None if classes is None else nn.Linear(8, classes)
        nn.init.constant_(self.attention.gamma, 0.7)

    def forward(self, x):
        x = self.drop(self.attention(self.stem(x)))
        return x if self.head is None else self.head(x.mean((2, 3)))


def content_of(page):
    found = re.search(
        r'<script id="content" type="application/json">(.*?)</script>', page.html, re.S
    )
    return json.loads(found[1])


@pytest.mark.parametrize("classes", [None, 7])
def test_a_network_of_ones_own_with_float_images(classes):
    network, images = Own(classes=classes), torch.randn(2, 5, 11, 7)
    network.stem.eval()  # as one freezes a trunk
    page = explore(network, images, names=["a", "b"], labels=["cat", "</script>"])
    assert (network.training, network.stem.training) == (True, False)  # as it was
    told = content_of(page)
    assert told["title"] == "What Own looks at"
    assert [(each["name"], each["label"]) for each in told["images"]] == [
        ("a", "cat"),
        ("b", "</script>"),
    ]
    (block,) = told["blocks"]
    assert (block["name"], block["grid"]) == ("attention", [11, 7])
    network.eval()
    with torch.no_grad(), capture_attention(network) as maps:
        logits = network(images)
    seen = page.content.weights.seen[1][0]
    want = maps["attention"][1].numpy()
    found = seen.shares.reshape(want.shape) / 255 * seen.peaks[..., None]
    assert (abs(found - want) <= want.max(-1, keepdims=True) / 255).all()
    guesses = told["images"][0]["guesses"]
    if classes is None:
        assert guesses == []
    else:
        best = logits.softmax(-1)[0].topk(3)
        assert [name for name, _ in guesses] == [f"output {i}" for i in best.indices]
        assert [p for _, p in guesses] == pytest.approx(best.values.tolist(), rel=1e-5)
    assert page.content.pictures.shape == (2, 11, 7, 1)
    assert {page.content.pictures.min(), page.content.pictures.max()} == {0, 255}


def test_the_same_images_as_files_pixels_and_floats(tmp_path):
    network = cvattn.load("vit-digits")
    channels, (height, width) = network.meta["channels"], network.meta["image_size"]
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 256, (3, channels, height, width), dtype=np.uint8)
    for name, picture in zip("abc", pixels, strict=True):
        mode = picture[0] if channels == 1 else np.moveaxis(picture, 0, -1)
        Image.fromarray(mode).save(tmp_path / f"{name}.png")
    mean, std = (torch.tensor(network.meta[key]).view(-1, 1, 1) for key in ("mean", "std"))
    pages = [
        explore("vit-digits", tmp_path),
        explore(network, sorted(tmp_path.iterdir()), names=["a.png", "b.png", "c.png"]),
        explore(network, torch.from_numpy(pixels), names=["a.png", "b.png", "c.png"]),
        explore(network, (torch.from_numpy(pixels).float() / 255 - mean) / std),
    ]
    first, *others = map(content_of, pages)
    assert [each["name"] for each in first["images"]] == ["a.png", "b.png", "c.png"]
    assert first["facts"][0] == "vit-digits"
    for told, page in zip(others, pages[1:], strict=True):
        # Equal to rounding: where an image lies in memory decides how sums are taken.
        for one, two in zip(told["blocks"], first["blocks"], strict=True):
            assert one["entropy"] == pytest.approx(two["entropy"], rel=1e-5)
        for one, two in zip(page.content.weights.seen, pages[0].content.weights.seen, strict=True):
            for mine, other in zip(one, two, strict=True):
                assert abs(mine.shares.astype(int) - other.shares).max() <= 1
        for one, two in zip(told["images"], first["images"], strict=True):
            assert [name for name, _ in one["guesses"]] == [name for name, _ in two["guesses"]]
        assert np.array_equal(page.content.pictures, pages[0].content.pictures)


def test_a_network_with_a_meta_of_its_own_is_like_any_other():
    network = Own()
    network.meta = "mine"
    assert len(explore(network, torch.randn(1, 5, 4, 6)).content.pictures) == 1


def test_validation_images_of_its_own_data():
    told = content_of(explore("sagan-digits", count=2))
    assert [each["name"].rpartition(" ")[0] for each in told["images"]] == ["val image"] * 2
    assert all(each["label"] in "0123456789" for each in told["images"])


def test_a_notebook_shows_what_a_file_holds(tmp_path):
    page = explore(Own(), torch.randn(1, 5, 4, 6))
    path = page.save(tmp_path / "page.html")
    assert path.read_text(encoding="utf-8") == page.html
    frame = page._repr_html_()
    assert html.unescape(re.search(r'srcdoc="([^"]*)"', frame)[1]) == page.html
    with pytest.raises(OSError, match=r"cannot write .*no.such"):
        page.save(tmp_path / "no" / "such" / "page.html")


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        (lambda: nn.Conv2d(3, 3, 1), {"images": torch.zeros(1, 3, 4, 4)}, "attention"),
        (lambda: "vit-digit", {}, "did you mean vit-digits"),
        (Own, {}, r"Own does not say .*preprocess=.*float \(B, C, H, W\), not NoneType"),
        (Own, {"images": torch.zeros(1, 5, 8, 8, dtype=torch.uint8)}, "not torch.uint8"),
        (Own, {"images": torch.zeros(5, 8, 8)}, r"shape \(5, 8, 8\): expected \(B, C, H, W\)"),
        (Own, {"images": torch.zeros(0, 5, 8, 8)}, "one image at least"),
        (Own, {"images": torch.zeros(2, 5, 4, 4), "names": ["a"]}, "1 names for 2 images"),
        (Own, {"images": torch.zeros(2, 5, 4, 4), "labels": "abc"}, "3 labels for 2 images"),
        (
            Own,
            {"images": torch.zeros(1, 5, 4, 4), "layers": ["atention"]},
            "did you mean attention",
        ),
        (lambda: "vit-digits", {"names": ["a"]}, "there are none"),
        (lambda: Own(classes=2), {"images": torch.full((1, 5, 4, 4), float("nan"))}, "not finite"),
        (lambda: "vit-digits", {"count": 0}, "count=0 must be at least 1"),
        (lambda: "vit-digits", {"images": 3}, "expected paths, PIL images or tensors, got int"),
        (lambda: "vit-digits", {"images": "nowhere.png"}, "nowhere.png"),
        (lambda: "vit-digits", {"images": []}, "name one file at least"),
        (lambda: "vit-digits", {"images": torch.zeros(1, 1, 8, 8, dtype=torch.int64)}, "int64"),
    ],
)
def test_mistakes(model, given, said):
    with pytest.raises(ValueError, match=said):
        explore(model(), **given)


def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "b.png").write_text("no image")
    with pytest.raises(InferenceError, match=r"b\.png: not an image"):
        explore("vit-digits", tmp_path / "b.png")

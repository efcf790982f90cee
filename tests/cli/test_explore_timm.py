"""``cvattn explore timm/NAME``: weights that are said, never random ones in silence."""

import numpy as np
import pytest
import timm
import torch
from installed import install
from pages import content, weights_in
from PIL import Image

from cvattn import capture_attention
from cvattn.cli import main

NAME = "test_vit"  # timm's smallest, for tests: 160 pixels, patches of 16


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((190, 170)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def page(tmp_path):
    return tmp_path / "page.html"


def network(**arguments):
    torch.manual_seed(11)
    return timm.create_model(NAME, **arguments).eval()


def explored(photo, page, *options) -> dict:
    assert main(["explore", f"timm/{NAME}", str(photo), "-o", str(page), *options]) == 0
    return content(page)


def test_weights_of_a_file(photo, page, tmp_path):
    from timm.data import ImageNetInfo, create_transform, resolve_model_data_config

    own = network()
    torch.save({"state_dict": own.state_dict()}, tmp_path / "own.pth")
    told = explored(photo, page, "--weights", str(tmp_path / "own.pth"))
    assert told["facts"][0] == f"timm/{NAME}, own.pth"
    transform = create_transform(**resolve_model_data_config(own), is_training=False)
    image = transform(Image.open(photo))[None]
    with torch.no_grad(), capture_attention(own) as maps:
        best = own(image).softmax(-1)[0].topk(3)
    (entry,) = told["images"]
    names = [ImageNetInfo().index_to_description(int(i)).split(",")[0] for i in best.indices]
    assert [name for name, _ in entry["guesses"]] == names == entry["targets"]
    assert [p for _, p in entry["guesses"]] == pytest.approx(best.values.tolist(), rel=1e-4)
    found = weights_in(told, 0)
    assert list(found) == [*maps, "rollout"]
    for name, weights in maps.items():
        want = weights[0, :, :, 1:].numpy()
        assert (abs(found[name] - want) <= want.max(-1, keepdims=True) / 250).all()


def test_a_head_of_other_classes_and_none(photo, page, tmp_path):
    torch.save(network(num_classes=7).state_dict(), tmp_path / "seven.pth")
    guesses = explored(photo, page, "--weights", f"{tmp_path}/seven.pth")["images"][0]["guesses"]
    assert {name for name, _ in guesses} <= {f"output {index}" for index in range(7)}
    torch.save(network(num_classes=0).state_dict(), tmp_path / "none.pth")
    (entry,) = explored(photo, page, "--weights", f"{tmp_path}/none.pth")["images"]
    assert entry["guesses"] == entry["targets"] == []


def test_weights_of_a_package(photo, page, tmp_path, monkeypatch):
    import io

    file = io.BytesIO()
    torch.save(network().state_dict(), file)
    install(tmp_path, "some-weights", {"some_weights/net.pth": file.getvalue()})
    monkeypatch.syspath_prepend(tmp_path)
    told = explored(photo, page, "--weights", "some-weights")
    assert told["facts"][0] == f"timm/{NAME}, net.pth of some-weights 1.2"


def test_random_weights_are_asked_for_and_said(photo, page):
    assert explored(photo, page, "--random-weights")["facts"][0] == (
        f"timm/{NAME}, random weights, untrained"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([f"timm/{NAME}", "PHOTO"], "CVATTN_OFFLINE=1 forbids; --weights FILE"),
        ([f"timm/{NAME}", "PHOTO", "--weights", "nowhere.pth"], "there is no such file"),
        ([f"timm/{NAME}", "PHOTO", "--weights", "PHOTO"], "not a file of weights"),
        ([f"timm/{NAME}", "PHOTO", "--weights", "OTHER"], f"is not of {NAME}"),
        ([f"timm/{NAME}", "PHOTO", "--weights", "x", "--random-weights"], "give one of them"),
        ([f"timm/{NAME}"], "name images"),
        ([f"timm/{NAME}", "data=digits"], "name images"),
        ([f"timm/{NAME}", "nowhere.png", "--random-weights"], "none of the images"),
        (["timm/test_vitt", "PHOTO", "--random-weights"], "did you mean test_vit"),
        (["vit-digits", "PHOTO", "--random-weights"], "is for networks of timm"),
        (["vit-digits", "PHOTO", "--weights", "x"], "--weights is for networks of timm"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_mistakes(arguments, said, photo, page, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CVATTN_OFFLINE", "1")
    torch.save(timm.create_model("test_vit2").state_dict(), tmp_path / "other.pth")
    places = {"PHOTO": str(photo), "OTHER": f"{tmp_path}/other.pth"}
    given = [places.get(each, each) for each in arguments]
    assert main(["explore", *given, "-o", str(page)]) == 2
    assert said in capsys.readouterr().err
    assert not page.exists()

"""``cvattn explore``: the numbers in the page are those that capture_attention gives."""

import copy
import re
import zlib

import numpy as np
import pytest
import torch
from oracles import assert_near
from pages import content, weights_in
from PIL import Image
from small_networks import SAGAN, VIT, write

import cvattn
from cvattn import SAGANClassifier, VisionTransformer, capture_attention
from cvattn.cli import main
from cvattn.explorer.pooling import BYTES, Grids, averaged, choose_grids, coarser, seen
from cvattn.explorer.weights import collect
from cvattn.maps import attention_distance, attention_entropy, attention_rollout


@pytest.fixture
def pictures(tmp_path):
    """Three files of 13 x 7 pixels (width x height); the second is no image."""
    rng = np.random.default_rng(5)
    for name in ("a.png", "c.png"):
        Image.fromarray(rng.integers(0, 256, (7, 13), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "b.png").write_text("no image")
    return tmp_path


def test_weights_predictions_and_measures_of_image_files(vit_7x13, pictures, capsys):
    path, network = vit_7x13
    page_file = pictures / "page.html"
    assert main(["explore", str(path), str(pictures), "-o", str(page_file)]) == 1
    said = capsys.readouterr()
    assert "b.png: not an image" in said.err
    assert re.search(r"2 images, \d+ blocks, 0\.\d MB: .*page\.html", said.out)

    page = content(page_file)
    pixels = [np.asarray(Image.open(pictures / name)) for name in ("a.png", "c.png")]
    images = (torch.tensor(np.stack(pixels))[:, None] / 255 - 0.4) / 0.25
    with torch.no_grad(), capture_attention(network) as maps:
        logits = network(images)
    assert [image["name"] for image in page["images"]] == ["a.png", "c.png"]
    for image, probabilities in zip(page["images"], logits.softmax(-1), strict=True):
        names = ["a cat", "dog", "[b]eel", "output 3"]
        best = probabilities.topk(3)
        assert [guess[0] for guess in image["guesses"]] == [names[i] for i in best.indices]
        assert [guess[1] for guess in image["guesses"]] == pytest.approx(
            best.values.tolist(), rel=1e-4
        )
        assert image["label"] is None
    layers = list(maps)
    assert [block["name"] for block in page["blocks"]] == [*layers, "rollout"]
    for index in range(2):
        found = weights_in(page, index)
        for name in layers:
            want = maps[name][index].numpy()
            assert (abs(found[name] - want) <= want.max(-1, keepdims=True) / 255).all()
        rollout = attention_rollout(dict(maps))[index].numpy()
        assert (abs(found["rollout"][0] - rollout) <= rollout.max(-1, keepdims=True) / 255).all()
    for block in page["blocks"][:-1]:
        assert block["grid"] == block["full"] == [7, 13]
        weights = maps[block["name"]]
        assert block["entropy"] == pytest.approx(attention_entropy(weights).tolist(), rel=1e-5)
        distance = attention_distance(weights.unflatten(-1, (7, 13))).tolist()
        assert block["distance"] == pytest.approx(distance, rel=1e-5)


def test_without_images_it_shows_validation_images_of_its_own_data(sagan, tmp_path, capsys):
    path, network = sagan
    page_file = tmp_path / "page.html"
    assert main(["explore", str(path), "--count", "5", "-o", str(page_file)]) == 0
    page = content(page_file)
    assert len(page["images"]) == 5
    assert all(re.fullmatch(r"val image \d+", image["name"]) for image in page["images"])
    assert all(image["label"] in "0123456789" for image in page["images"])
    blocks = {name.removeprefix("attention."): b for name, b in network.attention.named_children()}
    assert blocks
    for block in page["blocks"]:
        gamma = network.get_submodule(block["name"]).gamma.item()
        assert block["gamma"] == pytest.approx(gamma)
        assert gamma != 0


def test_nothing_in_the_page_comes_from_elsewhere(sagan, tmp_path):
    page_file = tmp_path / "page.html"
    main(["explore", str(sagan[0]), "--count", "2", "-o", str(page_file)])
    text = page_file.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=.(?!data:)[^{]|@import|url\(|https?:|fetch\(", text)


def test_names_cannot_end_the_script(tmp_path, capsys):
    meta = {"classes": ["</script><b>", "b"], "mean": [0.4], "std": [0.25]}
    meta |= {"image_size": [8, 12], "channels": 1}
    args = {**VIT, "num_classes": 2, "in_channels": 1, "image_size": [8, 12], "patch_size": 2}
    write(tmp_path / "vit.ckpt", VisionTransformer, args, meta)
    Image.fromarray(np.zeros((8, 12), np.uint8)).save(tmp_path / "x.png")
    page_file = tmp_path / "page.html"
    assert main(["explore", f"{tmp_path}/vit.ckpt", f"{tmp_path}/x.png", "-o", str(page_file)]) == 0
    assert page_file.read_text().count("</script>") == 2
    names = [guess[0] for guess in content(page_file)["images"][0]["guesses"]]
    assert sorted(names) == ["</script><b>", "b"]


@pytest.mark.usefixtures("float64")
def test_prefix_tokens_have_rows_and_take_their_share():
    model = VisionTransformer(
        5, image_size=(6, 10), patch_size=2, pool="cls", embed_dim=12, num_heads=3, num_layers=2
    ).eval()
    images = torch.randn(2, 3, 6, 10)
    found = collect(model, images)
    with torch.no_grad(), capture_attention(model) as maps:
        model(images)
    for index, block in enumerate(found.blocks[:-1]):
        assert block.num_prefix_tokens == 1
        weights, seen = maps[block.name][1], found.seen[1][index]
        assert seen.shares.shape == (3, 16, 15)
        # The page has them in float32; the largest is at most 1.
        for shown, exact in (
            (seen.prefix, weights[..., 0]),
            (seen.peaks, weights[..., 1:].amax(-1)),
        ):
            assert shown.dtype == np.float32
            error = (torch.tensor(shown).double() - exact).abs().max()
            assert error <= torch.finfo(torch.float32).eps


def test_large_maps_are_pooled_and_small_ones_are_not():
    model = SAGANClassifier(
        5, image_size=(41, 53), widths=(16, 16, 8), attention_after=("stage1", "stage2")
    ).eval()
    found = collect(model, torch.randn(1, 3, 41, 53))
    large, small = found.blocks
    assert large.full == (20, 26)
    assert large.grid == (14, 18)
    assert 14 * 18 <= 256 < 20 * 26
    assert small.full == small.grid == (10, 13)
    with torch.no_grad(), capture_attention(model) as maps:
        model(torch.randn(1, 3, 41, 53))
    # As fine as it can be, by what deflating leaves of 300 such images.
    chosen = set(choose_grids(maps, 300).values())
    assert chosen == {Grids((9, 11), (9, 11))}

    def deflated(size):
        shares = [seen(maps, name, Grids(size, size)).shares.tobytes() for name in maps]
        return 300 * len(zlib.compress(b"".join(shares)))

    assert deflated((9, 11)) <= BYTES < deflated((10, 13))


def test_pooling_takes_the_mean_of_queries_and_the_sum_of_keys():
    """5 x 7 to 2 x 3: cells are cut, and their shares go to both sides."""
    full = Grids((5, 7), (5, 7))
    weights = torch.rand(3, 36, 5, 7, dtype=torch.float64)
    found = coarser(weights, full, Grids((2, 3), (2, 3)), prefix=1)
    fine = (
        weights.repeat_interleave(2, 2).repeat_interleave(3, 3) / 6
    )  # on 10 x 21, which 2 x 3 divides
    keys = fine.unflatten(3, (3, 7)).unflatten(2, (2, 5)).sum((3, 5))
    assert_near(found[:, :1], keys[:, :1])
    queries = keys[:, 1:].unflatten(1, (5, 7)).repeat_interleave(2, 1).repeat_interleave(3, 2)
    want = queries.unflatten(2, (3, 7)).unflatten(1, (2, 5)).mean((2, 4))
    assert_near(found[:, 1:], want.flatten(1, 2))
    # Keys of another grid than the queries', and one of both alone.
    assert_near(coarser(weights, full, Grids((5, 7), (2, 3)), prefix=1), keys)
    alone = coarser(weights, full, Grids((2, 3), (5, 7)), prefix=1)
    assert_near(averaged(alone, (2, 3)) * (5 * 7 / 6), found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "0"], "--count 0 must be at least 1"),
        (["--layer", "attention.stag1"], "did you mean attention.stage"),
        (["data=digitz"], "did you mean digits"),
        (["nowhere.png"], "none of the images could be read"),
        (["nowhere.png", "data=digits"], "either images or data"),
        (["-o", "no/such/folder/page.html", "--count", "1"], "cannot write no/such/folder"),
    ],
    ids=str,
)
def test_mistakes(sagan, arguments, message, capsys):
    assert main(["explore", str(sagan[0]), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_network_without_attention(tmp_path, capsys):
    meta = {"classes": list("abcdefghij"), "mean": [0.4], "std": [0.25]}
    meta |= {"image_size": [32, 32], "channels": 1}
    args = {**SAGAN, "in_channels": 1, "attention": "none"}
    write(tmp_path / "plain.ckpt", SAGANClassifier, args, meta)
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "x.png")
    assert main(["explore", f"{tmp_path}/plain.ckpt", f"{tmp_path}/x.png"]) == 2
    assert "attention" in capsys.readouterr().err


def test_a_network_that_has_diverged_ends_with_1(vit_7x13, pictures, tmp_path, capsys):
    network = vit_7x13[1]
    entry = cvattn.checkpoint.read(vit_7x13[0])["cvattn"]
    broken = copy.deepcopy(network)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    path = tmp_path / "broken.ckpt"
    cvattn.checkpoint.save(path, broken, args=entry["args"], meta=entry["meta"])
    assert main(["explore", str(path), str(pictures / "a.png"), "-o", f"{tmp_path}/p.html"]) == 1
    assert "not finite" in capsys.readouterr().err

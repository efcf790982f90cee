"""``cvattn explore`` of a reader: each character's view of the line."""

import numpy as np
import pytest
import torch
from pages import content, weights_in

from cvattn import capture_attention, checkpoint
from cvattn.cli import main
from cvattn.core import Alphabet
from cvattn.core.alphabet import BEGIN, END
from cvattn.maps import attention_entropy
from cvattn.models import Reader
from cvattn.models.decoding import generate

CROSS = ["decoder.layers.0.cross_attn", "decoder.layers.1.cross_attn"]


def by_hand(network, pixels):
    """Tokens, probability, and each layer's weights (heads, T, keys) for the line by itself."""
    image = ((torch.tensor(pixels) / 255 - 0.3) / 0.4)[None, None]
    width = torch.tensor([pixels.shape[1]])
    found = generate(network, image, width, max_length=7)
    given = torch.cat([torch.tensor([[BEGIN]]), found.tokens[:, :-1]], dim=1)
    with torch.no_grad(), capture_attention(network, CROSS) as maps:
        network(image, width, given)
    return found.tokens[0].tolist(), found.log_probs.exp().item(), dict(maps)


def test_characters_and_weights_are_the_networks(reader, lines, tmp_path):
    path, network = reader
    page_file = tmp_path / "page.html"
    files = [str(file) for file, _ in lines]
    assert main(["explore", str(path), *files, "-o", str(page_file)]) == 0
    page = content(page_file)
    assert [block["name"] for block in page["blocks"]] == CROSS
    columns = page["blocks"][0]["grid"][1]
    entropies = []
    for index, (_, pixels) in enumerate(lines):
        tokens, probability, maps = by_hand(network, pixels)
        entry = page["images"][index]
        text = Alphabet("aé界").decode(tokens)
        assert entry["guesses"] == [[text, pytest.approx(probability, rel=1e-4)]]
        assert entry["characters"] == [*text, *(["end"] if END in tokens else [])]
        for name, found in weights_in(page, index).items():
            rows = network.rows
            want = maps[name][0].unflatten(-1, (rows, -1)).numpy()
            shown = found.reshape(*found.shape[:2], rows, columns)
            own = want.shape[-1]  # the page's lines are as wide as the widest
            assert not shown[..., own:].any()
            peak = want.max((-2, -1), keepdims=True)
            assert (abs(shown[..., :own] - want) <= peak / 255 + 1e-6).all()
        entropies.append([attention_entropy(maps[name]).tolist() for name in CROSS])
    for block, want in zip(page["blocks"], np.mean(entropies, axis=0), strict=True):
        assert block["entropy"] == pytest.approx(want.tolist(), rel=1e-4)
        assert block["rows"] == "characters"
        assert block["distance"] == []


def test_without_images_it_shows_lines_of_its_own_data(tmp_path):
    args = {"target_vocab": 13, "embed_dim": 12, "num_heads": 3, "ffn_dim": 17, "stem": [4, 6]}
    data = {"_target_": "cvattn.data.DigitLinesData", "batch_size": 3, "seed": 0}
    meta = {"alphabet": list("0123456789"), "max_length": 9, "height": 32}
    meta |= {"mean": [0.26], "std": [0.3], "config": {"data": data}}
    checkpoint.save(tmp_path / "r.ckpt", Reader(**args), args=args, meta=meta)
    page_file = tmp_path / "page.html"
    assert main(["explore", f"{tmp_path}/r.ckpt", "--count", "3", "-o", str(page_file)]) == 0
    images = content(page_file)["images"]
    assert [image["name"] for image in images] == [f"val line {i}" for i in range(3)]
    assert all(image["label"].isdigit() for image in images)


def test_mistakes_with_readers(reader, lines, tmp_path, capsys):
    path, _ = reader
    (tmp_path / "b.png").write_text("no image")
    page = f"{tmp_path}/page.html"
    files = [f"{tmp_path}/b.png", str(lines[0][0])]
    assert main(["explore", str(path), *files, "-o", page]) == 1  # the other is shown
    assert "b.png: not an image" in capsys.readouterr().err
    for arguments, message in (
        ([], "does not say what it was trained on; name images"),
        (["data=digits"], "data=digits: of readers, name images of lines instead"),
        ([f"{tmp_path}/b.png"], "none of the images could be read"),
        ([str(lines[0][0]), "--layer", "decoder.layers.7"], "did you mean decoder.layers"),
    ):
        assert main(["explore", str(path), *arguments, "-o", page]) == 2
        assert message in capsys.readouterr().err

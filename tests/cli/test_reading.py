"""``cvattn predict`` for readers: against the network called by hand, on files of the test."""

import math

import numpy as np
import torch
from PIL import Image
from small_networks import READER, READER_META

from cvattn import checkpoint
from cvattn.cli import main
from cvattn.core import Alphabet
from cvattn.core.alphabet import BEGIN, END, PAD
from cvattn.models import Transformer


def by_hand(network, pixels):
    """Without cache, one token at a time: the text and its probability."""
    image = (torch.tensor(pixels / 255) - 0.3) / 0.4
    image = image[None, None].float()
    ids, total = [BEGIN], 0.0
    while ids[-1] != END and len(ids) <= 7:
        with torch.no_grad():
            logits = network(image, torch.tensor([pixels.shape[1]]), torch.tensor([ids]))[0, -1]
        logits[[PAD, BEGIN]] = -torch.inf
        steps = logits.log_softmax(-1)
        ids.append(int(steps.argmax()))
        total += float(steps.max())
    return Alphabet("aé界").decode(ids), math.exp(total)


def test_text_and_probability_are_those_of_the_network(reader, lines, capsys):
    path, network = reader
    assert main(["predict", str(path), *(str(file) for file, _ in lines)]) == 0
    printed = capsys.readouterr().out.splitlines()
    answers = []
    for row, (file, pixels) in zip(printed, lines, strict=True):
        text, probability = by_hand(network, pixels)
        assert row == f"{file}  {text}  {probability:.2%}"
        answers.append(text)
    assert len(set(answers)) > 1


def test_what_cannot_be_read_is_named_and_the_rest_is_read(reader, lines, tmp_path, capsys):
    path, _ = reader
    Image.fromarray(np.zeros((40, 20), dtype=np.uint8)).save(tmp_path / "high.png")
    files = [tmp_path / "high.png", tmp_path / "none.png", lines[0][0]]
    assert main(["predict", str(path), *map(str, files)]) == 1
    out, err = capsys.readouterr()
    assert "high.png: the line is 40 pixels high, lines may be at most 32; scale the image" in err
    assert "none.png: no such file" in err
    assert out.count("\n") == 1


def test_a_network_of_strings_reads_no_images(tmp_path, lines, capsys):
    args = {"source_vocab": 6, "target_vocab": 6, "embed_dim": 12, "num_heads": 3}
    meta = {"alphabet": list("aé界"), "max_length": 7}
    checkpoint.save(tmp_path / "t.ckpt", Transformer(**args), args=args, meta=meta)
    assert main(["predict", str(tmp_path / "t.ckpt"), str(lines[0][0])]) == 2
    assert "Transformer that answers to strings" in capsys.readouterr().err


def test_a_reader_is_no_classifier(reader, capsys):
    assert main(["evaluate", str(reader[0])]) == 2
    assert "holds a Reader and does not say its" in capsys.readouterr().err


def test_a_damaged_description(reader, lines, capsys):
    path, network = reader
    checkpoint.save(path, network, args=READER, meta={**READER_META, "mean": [0.3, 0.3]})
    assert main(["predict", str(path), str(lines[0][0])]) == 2
    assert "its description cannot be used" in capsys.readouterr().err

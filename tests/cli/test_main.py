"""The door of the commands, and checkpoints that are of no use."""

import pytest
import torch
from small_networks import DIGITS, VIT, write

from cvattn import Transformer, VisionTransformer, checkpoint
from cvattn.cli import COMMANDS, main


def fails(capsys, *arguments, code=2):
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_help_names_the_commands(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("cvattn 0.")
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
        said = "train is powered by Hydra" if name == "train" else f"cvattn {name}"
        assert said in capsys.readouterr().out


def test_what_cannot_be_read_on_the_command_line(capsys):
    assert "unknown command 'evalute'; did you mean evaluate?" in fails(capsys, "evalute")
    assert "there are: train, predict, evaluate" in fails(capsys, "zzz")
    assert "arguments are required: CHECKPOINT" in fails(capsys, "evaluate")
    assert "IMAGE" in fails(capsys, "predict", "x.ckpt")
    assert "invalid int value: 'a'" in fails(capsys, "predict", "x.ckpt", "a.png", "--top", "a")
    assert "--top 0 must be" in fails(capsys, "predict", "x.ckpt", "a.png", "--top", "0")
    assert "did you mean --top?" in fails(capsys, "predict", "x.ckpt", "a.png", "--tops=1")


def test_what_is_no_checkpoint(sagan, tmp_path, capsys):
    path, _ = sagan
    near = fails(capsys, "predict", str(path.with_name("lst.ckpt")), "a.png")
    assert f"no checkpoint at {path.with_name('lst.ckpt')}; did you mean {path}?" in near
    assert f"it is a folder: {path}" in fails(capsys, "evaluate", str(path.parent.parent))
    (tmp_path / "words").write_text("words")
    assert "is not a checkpoint" in fails(capsys, "evaluate", str(tmp_path / "words"))


def test_a_network_that_classifies_no_images(tmp_path, capsys):
    args = {"source_vocab": 11, "target_vocab": 13, "embed_dim": 8, "num_heads": 2, "ffn_dim": 7}
    checkpoint.save(tmp_path / "t.ckpt", Transformer(**args), args=args, meta={})
    text = fails(capsys, "predict", str(tmp_path / "t.ckpt"), "a.png")
    assert "holds a Transformer and does not say its image_size" in text
    checkpoint.save(tmp_path / "t.ckpt", Transformer(**args), args=args, meta=DIGITS)
    text = fails(capsys, "predict", str(tmp_path / "t.ckpt"), "a.png")
    assert "does not take its own images" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": list("abcdefghijk")}, "11 classes, but the network has 10 outputs"),
        ({"image_size": [16, 32]}, "does not take its own images: the model was built for"),
        ({"image_size": 32}, "its description cannot be used"),
        ({"mean": [0.1]}, "3 channels with mean (0.1,)"),
        ({"std": [0.1, 0.0, 0.2]}, "3 channels with mean"),
    ],
)
def test_a_description_that_is_not_of_the_network(tmp_path, capsys, changes, message):
    write(tmp_path / "v.ckpt", VisionTransformer, VIT, {**DIGITS, **changes})
    assert message in fails(capsys, "predict", str(tmp_path / "v.ckpt"), "a.png")


def test_ctrl_c(sagan, capsys, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "load", interrupt)
    assert main(["predict", str(sagan[0]), "a.png"]) == 130
    assert capsys.readouterr().err == "interrupted\n"

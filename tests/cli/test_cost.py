"""``cvattn cost``: its numbers against the functions', and one line for each mistake."""

import json

import pytest
import torch

from cvattn import SelfAttention2d, VisionTransformer
from cvattn.cli import main
from cvattn.cost import count_macs, count_parameters, explain_attention, predict_peak


def as_json(capsys, *arguments):
    assert main(["cost", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_block(capsys):
    text = "SelfAttention2d.biggan(16)"
    found = as_json(capsys, text, "--input", "2,16,5,7", "--dtype", "bfloat16", "--training")
    block = SelfAttention2d.biggan(16).bfloat16()
    x = torch.randn(2, 16, 5, 7).bfloat16().requires_grad_()
    assert found["parameters"] == count_parameters(block)
    assert found["macs"] == count_macs(block, x)
    assert found["peak_bytes"] == predict_peak(block, x, training=True)
    (cost,) = explain_attention(block, x, training=True)
    (shown,) = found["attention"]
    assert shown == cost._asdict() | {"dtype": "bfloat16", "refused": dict(cost.refused)}
    assert found["fits"] in (True, None)
    assert found["held_bytes"] > 2 * 2 * 16 * 35


def test_what_is_printed(capsys):
    text = "VisionTransformer(num_classes=5, image_size=(8, 12), embed_dim=12, num_layers=2)"
    assert main(["cost", text]) == 0
    out = capsys.readouterr().out
    assert "on 1,3,8,12: float32, forward, cpu" in out
    lines = [line.split() for line in out.splitlines() if line.startswith("encoder.")]
    assert [line[0] for line in lines] == [f"encoder.layers.{i}.self_attn" for i in (0, 1)]
    assert lines[0][1:8] == ["6", "x", "6", "1", "x", "3", "4,"]
    model = VisionTransformer(5, image_size=(8, 12), embed_dim=12, num_layers=2)
    cost, _ = explain_attention(model, torch.randn(1, 3, 8, 12))
    assert f"{cost.route} (2 times): {cost.reason}" in out
    assert "available now" in out


def test_refused_ways_are_printed(capsys):
    assert main(["cost", "SelfAttention2d(16)", "--input", "1,16,67,71"]) == 0
    out = capsys.readouterr().out
    (cost,) = explain_attention(SelfAttention2d(16), torch.randn(1, 16, 67, 71))
    assert cost.refused
    for route, why in cost.refused.items():
        assert f"not {route}: {why}" in out
    assert "(itself)" in out
    assert "4757 x 4757" in out


def test_what_cannot_fit(capsys):
    found = as_json(capsys, "SelfAttention2d(64)", "--input", "9999,64,512,509")
    assert found["fits"] is False
    assert main(["cost", "SelfAttention2d(64)", "--input", "9999,64,512,509"]) == 0
    assert "does not fit: " in capsys.readouterr().out


def test_a_checkpoint_and_several_inputs(sagan, capsys):
    path, network = sagan
    found = as_json(capsys, str(path))
    assert found["inputs"] == ["1,3,32,32"]
    assert found["parameters"] == count_parameters(network)
    text = "Transformer(11, 13, embed_dim=8, num_heads=2, ffn_dim=7)"
    found = as_json(capsys, text, "--input", "3,5:int64", "--input", "3,7:int64", "--training")
    pairs = {(cost["queries"], cost["keys"]) for cost in found["attention"]}
    assert pairs == {(5, 5), (7, 7), (7, 5)}


def test_a_plan_for_a_gpu_that_is_not_here(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = ["SelfAttention2d(32)", "--input", "2,32,67,71", "--dtype", "bfloat16"]
    arguments += ["--device", "cuda", "--training"]
    found = as_json(capsys, *arguments)
    assert found["peak_bytes"] is None
    assert found["fits"] is None
    assert found["attention"][0]["route"] == "padded"
    assert main(["cost", *arguments]) == 0
    assert "peak        unknown" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SelfAtention2d(8)"], "no 'SelfAtention2d' to be built; did you mean SelfAttention2d"),
        (["SelfAttention2d.bigan(8)"], "did you mean SelfAttention2d.biggan"),
        (["WindowAttention2d.unet(8, num_head=2)"], "did you mean num_heads?"),
        (["SelfAttention2d(8, num_head=2)"], "no argument 'num_head'; did you mean num_heads?"),
        (["SelfAttention2d(8, num_heads=3)"], "not divisible by num_heads=3"),
        (["SelfAttention2d()"], "missing 1 required positional argument"),
        (["SelfAttention2d(int('8'))"], "\"int('8')\" is no literal"),
        (["SelfAttention2d(**{'in_channels': 8})"], "cannot read '**'"),
        (["SelfAttention2d"], "is no call; expected a class with its arguments"),
        (["SelfAttention2d(8"], "cannot read 'SelfAttention2d(8'"),
        (["__import__('os').getcwd()"], "to be built"),
        (["gone.ckpt"], "no checkpoint at gone.ckpt"),
        (["SelfAttention2d(8)"], "Give --input SIZES"),
        (["SelfAttention2d(8)", "--input", "1,8,x,3"], "cannot read --input '1,8,x,3'"),
        (["SelfAttention2d(8)", "--input", "1,8,0,3"], "sizes of at least 1"),
        (
            ["SelfAttention2d(8)", "--input", "1,8,2,3:int46"],
            "'int46' is not known; did you mean i",
        ),
        (["SelfAttention2d(8)", "--input", "1,7,2,3"], "does not take 1,7,2,3: expected a feature"),
        (
            ["SelfAttention2d(8)", "--input", "1,8,2,3", "--dtype", "float23"],
            "did you mean float32",
        ),
        (["SelfAttention2d(8)", "--inputs", "1,8,2,3"], "did you mean --input?"),
    ],
)
def test_mistakes(arguments, message, capsys):
    assert main(["cost", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err

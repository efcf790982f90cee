"""model=timm through the harness: a CNN by name, weights from a file, the gamma of each block."""

import json

import pytest
import torch
from runs import TINY

import cvattn
from cvattn.harness import ConfigError
from cvattn.harness.assemble import assemble

# timm's own network for tests, and a run of a second.
TIMM = [
    *(each for each in TINY if not each.startswith("model")),
    *("model=timm", "model.name=test_resnet", "recipe.batch_size=16", "data.eval_batch_size=20"),
    *("trainer.limit_val_batches=1", "trainer.limit_test_batches=1"),
]


def test_from_weights_of_a_file_to_the_gamma_of_each_block(composed, run, tmp_path, capsys):
    import timm

    weights = tmp_path / "weights.pth"
    theirs = timm.create_model("test_resnet", num_classes=13)
    torch.save(theirs.state_dict(), weights)
    run([*TIMM, "model.attention.after=[layer2,layer3.0]", f"model.pretrained={weights}"])

    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    blocks = ["cnn.layer2.inserted_attention", "cnn.layer3.0.inserted_attention"]
    assert sorted(summary["gamma"]) == blocks
    printed = " ".join(capsys.readouterr().out.split())
    assert f"gamma: {blocks[0]} {summary['gamma'][blocks[0]]:.3g}, {blocks[1]}" in printed
    assert (tmp_path / "run" / "attention.png").read_bytes().startswith(b"\x89PNG")

    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    network = cvattn.load(last)
    gamma = network.cnn.layer2.inserted_attention.gamma.item()
    assert gamma == pytest.approx(summary["gamma"][blocks[0]], abs=1e-6) != 0.0
    # Three steps of AdamW move a weight by 3 x lr at most, and decay little.
    trained, given = network.cnn.layer4[0].conv1.weight, theirs.layer4[0].conv1.weight
    assert 0 < (trained - given).abs().max() < 4e-3 < given.abs().max()

    weights.unlink()  # a run that goes on has its weights in the checkpoint
    again = assemble(composed(["model=timm", f"ckpt_path={last}", "trainer.max_epochs=2"]))
    assert again.saved.position.epoch == 1
    assert again.resolved["model"]["pretrained"] == str(weights)
    assert again.task.inserted_lr == 1.0


WRONG = [
    ("model.name=resnet_18", r"model: timm .* no network 'resnet_18'; did you mean .*resnet18"),
    ("model.pretrained=true", "model: pretrained=True: the weights of test_resnet .*OFFLINE"),
    ("model.pretrained=gone.pth", r"model: pretrained=gone\.pth: there is no such file"),
    ("model.attention.after=layer5", "model: ResNet has no layer 'layer5'; did you mean layer4"),
    ("model.attention=layer3", r"model\.attention='layer3': expected"),
    ("model.small_images=yess", r"model\.small_images='yess': expected bool"),
]


@pytest.mark.parametrize(("override", "message"), WRONG)
def test_what_is_wrong_is_said(run, override, message, monkeypatch):
    monkeypatch.setenv("CVATTN_OFFLINE", "1")
    with pytest.raises(ConfigError, match=message):
        run([*TIMM, override])

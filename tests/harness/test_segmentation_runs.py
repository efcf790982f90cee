"""Runs that learn to name pixels: what they leave, continued exactly, wrong input named at once."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from killing import differences, outcome
from mask_folders import CLASSES, draw_masks
from PIL import Image
from runs import train

import cvattn
from cvattn.data import MasksFolderData
from cvattn.harness import ConfigError
from cvattn.harness.reporting.csv_log import read_metrics
from cvattn.tasks import SegmentationTask
from cvattn.tasks.mean_iou import MeanIoU

OWN = [
    *("data=masks_folder", "data.classes=[no,yes]", "data.image_size=[16,20]", "data.crop_pad=3"),
    *("recipe.batch_size=3", "trainer.max_epochs=2", "trainer.precision=32-true"),
    "trainer.accelerator=cpu",
]
SEGMENTER = ["model=segmenter", "model.encoder=test_resnet", "model.width=8", *OWN]
UNET = ["model=unet", "task=segmentation", "model.width=4", "model.dropout=0.1", *OWN]
KINDS = {"segmenter": SEGMENTER, "unet": UNET}


class Stop(Exception):
    """In place of a kill, in this process."""


@pytest.fixture
def root(tmp_path):
    return draw_masks(tmp_path / "masks of mine")


def counted_again(network, root):
    """The mean IoU of a network on the test masks."""
    data = MasksFolderData(
        root=root, image_size=[16, 20], mean=network.meta["mean"], std=network.meta["std"]
    )
    metric = MeanIoU(2)
    for images, masks in data.test_dataloader():
        with torch.no_grad():
            metric.update(network(images), masks.long())
    return float(metric.compute())


def test_a_run_is_judged_by_its_mean_iou_and_leaves_masks(run, root, tmp_path, capsys):
    score = run([*SEGMENTER, f"data.root='{root}'"])
    folder = tmp_path / "run"
    summary = json.loads((folder / "summary.json").read_text())
    rows = read_metrics(folder / "metrics.csv")
    best = max(row["val/mean_iou"] for row in rows.values())
    told = {"metric": "val/mean_iou", "mode": "max", "best": pytest.approx(best)}
    assert summary["criterion"] == told
    assert score == pytest.approx(best)
    assert summary["test"].keys() == {"loss", "mean_iou", "pixel_accuracy"}
    assert {"train/loss", "train/pixel_accuracy"} <= rows[0].keys()
    for name in ("masks.png", "curves.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG"), name
    printed = capsys.readouterr().out
    for said in ("masks.png", f"val {best:.1%}", "cvattn predict"):
        assert said in printed
    assert "taken for two classes" in summary["data"]["source"]
    network = cvattn.load(folder / "checkpoints" / "last.ckpt")
    assert network.meta["classes"] == CLASSES
    assert (network.meta["mask_values"], network.meta["mask_void"]) == ([0, 255], None)
    # The figure is that of the last weights on the test masks, counted again here.
    assert summary["test"]["mean_iou"] == pytest.approx(counted_again(network, root), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("segmenter", marks=pytest.mark.slow), "unet"])
def test_a_run_that_was_stopped_and_continued_is_one_that_was_not(
    run, root, tmp_path, monkeypatch, kind
):
    given = [*KINDS[kind], f"data.root='{root}'", "callbacks.last.every_minutes=0"]
    found = {}
    for name, more in (("whole", []), ("other", ["seed=1"])):
        run([*given, *more])
        found[name] = outcome(tmp_path / "run")
        (tmp_path / "run").rename(tmp_path / name)
    step, calls = SegmentationTask.training_step, []

    def stopped(self, batch, batch_idx):
        calls.append(batch_idx)
        if len(calls) == 5:
            raise Stop
        return step(self, batch, batch_idx)

    monkeypatch.setattr(SegmentationTask, "training_step", stopped)
    with pytest.raises(Stop):
        run(given)
    run([f"ckpt_path={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"])
    assert calls == [0, 1, 2, 0, 1, 1, 2]
    assert differences(found["whole"], outcome(tmp_path / "run")) == []
    assert differences(found["whole"]["state_dict"], found["other"]["state_dict"])


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["model=sagan", "task=classification"],
            "digit_scenes has a mask for each image.*learns from a class",
        ),
        (["model=unet", "task=flow"], "FlowTask learns from a class; task=segmentation does"),
        (["data=digits"], "digits has a class .* SegmentationTask learns from a mask; task=class"),
        (["data=reverse"], "reverse has a text for each string"),
        (["model=sagan"], "SAGANClassifier names whole images"),
        (["model=unet", "model.timed=true"], "timed=false and classes=0"),
        (["model=unet", "model.out_channels=3"], "gives 3 maps, the data has 5 classes"),
        (["model=unet", "data.image_size=[50,96]"], "both have to be divisible by 4"),
        (["model.num_classes=3"], "model.num_classes=3, but digit_scenes has 5 classes"),
        (["model.head=dilatd"], "expected one of fcn, attention, dilated"),
        (["model.stride=3"], "the maps of resnet10t are 2, 4, 8, 16, 32 times smaller"),
        (["data.digits=9"], "have room for 2"),
    ],
)
def test_what_cannot_be_is_refused_before_training(run, overrides, said):
    small = ["data.train_size=40", "data.val_size=3", "data.test_size=3"]
    data = [text for text in overrides if text.startswith("data=")]
    given = ["model=segmenter", "data=digit_scenes", "task=segmentation", *overrides]
    with pytest.raises(ConfigError, match=said):
        run([*given, *([] if data else small)])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: (root / "train/masks/03.png").unlink(), "have no mask in .*: 03"),
        (
            lambda root: Image.new("L", (22, 17)).save(root / "test/masks/01.png"),
            r"test/masks/01\.png: 22 x 17 pixels, and its image 01\.jpg has 23 x 17",
        ),
        (
            lambda root: Image.new("L", (23, 17), 7).save(root / "test/masks/01.png"),
            r"test/masks/01\.png: values 7 mean nothing",
        ),
    ],
)
def test_bad_masks_are_named_before_training(run, root, monkeypatch, spoil, said):
    spoil(root)
    monkeypatch.setattr(SegmentationTask, "training_step", lambda *_: pytest.fail("trained"))
    with pytest.raises(ConfigError, match=said):
        run([*SEGMENTER, f"data.root='{root}'"])


def test_a_unet_is_filled_in_for_its_task(composed, root):
    from cvattn.harness.config.resolve import resolve

    given = [*UNET, f"data.root='{root}'"]
    cfg = composed(given)
    resolve(cfg, given)
    assert (cfg.model.timed, cfg.model.classes, cfg.model.out_channels) == (False, 0, 2)
    cfg = composed(["model=unet", "data=digits"])
    resolve(cfg, ["model=unet", "data=digits"])
    assert (cfg.model.timed, cfg.model.classes, cfg.model.out_channels) == (True, 10, 3)


@pytest.mark.slow
def test_from_the_shell_train_and_predict(root, tmp_path):
    """As somebody does it with a folder of their own."""
    output = train(*SEGMENTER, f"data.root={root}", f"hydra.run.dir={tmp_path}/out", cwd=tmp_path)
    assert "masks.png" in output
    done = subprocess.run(
        [
            *(sys.executable, "-m", "cvattn", "predict", "out/checkpoints/last.ckpt"),
            *(str(root / "test" / "images"), "-o", "found"),
        ],
        cwd=tmp_path,
        env={**os.environ, "CVATTN_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = sorted((tmp_path / "found").iterdir())
    assert [path.name for path in found] == [f"{number:02}.png" for number in range(5)]
    for path in found:
        with Image.open(path) as mask:
            assert mask.size == (23, 17)
            assert set(np.unique(np.array(mask))) <= {0, 255}


@pytest.mark.slow
def test_two_processes_count_each_pixel_once(root, tmp_path):
    given = [*UNET, f"data.root={root}", "recipe.batch_size=4", "data.eval_batch_size=2"]
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    train(*given, *ddp, f"hydra.run.dir={tmp_path}/two", cwd=tmp_path)
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert summary["processes"] == 2
    network = cvattn.load(tmp_path / "two" / "checkpoints" / "last.ckpt")
    assert summary["test"]["mean_iou"] == pytest.approx(counted_again(network, root), abs=1e-6)

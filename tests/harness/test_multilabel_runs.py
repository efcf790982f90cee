"""Runs that learn several labels of an image: what they leave, and every command after them."""

import json
from functools import partial

import pytest
import torch
from killing import differences, outcome
from label_tables import COLOURS, draw_labels
from PIL import Image
from torch import nn

import cvattn
from cvattn.cli import main
from cvattn.data import FolderData, LabelsCSVData
from cvattn.harness import ConfigError
from cvattn.harness.reporting.csv_log import read_metrics
from cvattn.inference import LabelClassifier, open_classifier
from cvattn.tasks import ClassificationTask, MultilabelTask

SMALL = [
    *("task=multilabel", "data=labels_csv", "data.image_size=[12,20]", "data.crop_pad=0"),
    *("model=sagan", "model.widths=[8,8,8]", "recipe.batch_size=10", "recipe.resizing=[]"),
    *("trainer.precision=32-true", "trainer.accelerator=cpu", "trainer.max_epochs=12"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return draw_labels(tmp_path_factory.mktemp("labels of mine"))


def test_a_run_and_all_that_is_done_with_its_network(run, root, tmp_path, capsys):
    score = run([*SMALL, f"data.root='{root}'"])
    folder = tmp_path / "run"
    summary = json.loads((folder / "summary.json").read_text())
    rows = read_metrics(folder / "metrics.csv")
    best = max(row["val/mean_average_precision"] for row in rows.values())
    told = {"metric": "val/mean_average_precision", "mode": "max", "best": pytest.approx(best)}
    assert summary["criterion"] == told
    assert score == pytest.approx(best)
    assert score > 0.7  # of 0.35 by chance
    assert summary["test"].keys() == {"loss", "mean_average_precision", "f1_macro"}
    assert (folder / "curves.png").exists()
    printed = capsys.readouterr().out
    for said in (
        "test mAP",
        f"val {best:.1%}",
        "cvattn predict",
        "labels_csv: 61 / 17 / 23 images",
    ):
        assert said in printed

    path = folder / "checkpoints" / "last.ckpt"
    classifier = open_classifier(path)
    assert isinstance(classifier, LabelClassifier)
    data = LabelsCSVData(root=root, image_size=[12, 20])
    part = data.split("test")
    guesses = classifier.predict(part.images.numpy(), top=3)
    with torch.no_grad():
        shares = classifier.network(classifier.normalise(part.images.numpy())).sigmoid()
    for found, want in zip(guesses, shares, strict=True):
        assert dict(found) == pytest.approx(dict(zip(COLOURS, want.tolist(), strict=True)))

    assert main(["evaluate", str(path)]) == 0
    report = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    for name in ("mean_average_precision", "f1_macro"):
        assert report[name] == pytest.approx(summary["test"][name], abs=1e-5)
    assert report["labels"].keys() == COLOURS.keys()
    assert report["labels"]["red"]["images"] == int(part.labels[:, 0].sum())
    assert report["labels"]["red"]["given"] == int((shares[:, 0] > 0.5).sum())
    assert "average precision" in capsys.readouterr().out

    images = [str(root / "pictures" / f"test {i}.png") for i in range(8)]
    assert main(["predict", str(path), *images]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    for line, want in zip(lines, shares, strict=False):
        seen = [name for name, share in zip(COLOURS, want.tolist(), strict=True) if share > 0.5]
        assert all(f"{name} " in line for name in seen)
        assert ("nothing (likeliest: " in line) == (not seen)
    assert main(["predict", str(path), "--top", "2", images[0]]) == 2
    assert "--top is for networks that name one class" in capsys.readouterr().err

    export = ["export", str(path), "--to", "torchexport", "--fixed-size"]
    assert main([*export, "-o", str(tmp_path / "net.pt2")]) == 0
    assert main(["explore", str(path), "-o", str(tmp_path / "page.html"), "--count", "3"]) == 0
    assert main(["explore", str(path), images[0], "-o", str(tmp_path / "page.html")]) == 0
    assert main(["evaluate", str(path), "--views", "flip"]) == 2
    assert "--views is for networks that name one class" in capsys.readouterr().err
    assert main(["evaluate", str(path), "data=digits"]) == 2
    said = capsys.readouterr().err
    assert "gives several labels for each image, and digits has a class" in " ".join(said.split())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["task=classification"],
            "has several labels for each image, and ClassificationTask learns",
        ),
        (["data=digits"], "has a class for each image, and MultilabelTask learns from several lab"),
        (["data.balanced_sampling=true"], "balanced_sampling"),
    ],
)
def test_what_does_not_fit_is_refused(run, root, overrides, message):
    given = [
        text for text in SMALL if not text.startswith("data") or "data=digits" not in overrides
    ]
    more = [] if "data=digits" in overrides else [f"data.root='{root}'"]
    with pytest.raises(Exception, match=message) as error:
        run([*given, *more, *overrides])
    assert isinstance(error.value, ConfigError) or "balanced" in message


def test_from_python(root, tmp_path):
    """The task is that of the data, and best.ckpt is chosen by what it is judged by."""
    data = LabelsCSVData(root=root, image_size=[12, 20], batch_size=10)
    network = nn.Sequential(nn.AdaptiveAvgPool2d((3, 1)), nn.Flatten(), nn.Linear(9, 3))
    given = {"accelerator": "cpu", "precision": "32-true"}
    summary = cvattn.fit(network, data, folder=tmp_path / "labels", epochs=2, trainer=given)
    assert summary["criterion"]["metric"] == "val/mean_average_precision"
    for part, count in {"train": 4, "val": 2, "test": 2}.items():
        for name in "ab":
            (tmp_path / "of" / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (90 * i, 0, 0)).save(
                    tmp_path / "of" / part / name / f"{i}.png"
                )
    classes = FolderData(root=tmp_path / "of", image_size=8, batch_size=4)
    task = ClassificationTask(
        nn.Sequential(nn.Flatten(), nn.Linear(192, 2)),
        num_classes=2,
        optimizer=partial(torch.optim.SGD, lr=0.1),
        criterion="accuracy_macro",
        class_weights="balanced",
    )
    summary = cvattn.fit(task, classes, folder=tmp_path / "macro", epochs=1, trainer=given)
    assert summary["criterion"]["metric"] == "val/accuracy_macro"
    assert (tmp_path / "macro" / "checkpoints" / "best.ckpt").exists()


class Stop(Exception):
    """In place of a kill, in this process."""


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_bits(composed, root, tmp_path, monkeypatch):
    from cvattn.harness import fit

    given = [*SMALL, f"data.root='{root}'", "trainer.max_epochs=2", "data.color_jitter=0.3"]
    given += ["callbacks.last.every_minutes=0"]

    def go(name, overrides):
        cfg = composed(overrides)
        cfg.run_dir = str(tmp_path / name)
        fit(cfg)
        return tmp_path / name

    want = outcome(go("whole", given))
    step, steps = MultilabelTask.training_step, iter(range(1000))

    def stop(self, *batch):
        if next(steps) == 8:
            raise Stop
        return step(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(MultilabelTask, "training_step", stop)
        with pytest.raises(Stop):
            go("cut", given)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    assert not differences(want, outcome(go("cut", [f"ckpt_path={last}"])))

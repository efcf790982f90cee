"""Augmentation and unequal classes in whole runs: they act, are checked early and are continued."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import differences, outcome
from PIL import Image
from runs import CONF

from cvattn.cli import main
from cvattn.harness import ConfigError, check_command_line, fit
from cvattn.harness.config.resolve import resolve
from cvattn.harness.reporting.csv_log import read_metrics
from cvattn.tasks import ClassificationTask

BLUR = "{_target_:torchvision.transforms.v2.GaussianBlur,kernel_size:3}"
SOMETIMES = f"{{_target_:torchvision.transforms.v2.RandomApply,transforms:[{BLUR}],p:0.5}}"
PHOTOGRAPHS = [
    *("data.color_jitter=0.4", "data.random_erasing=0.5", "data.trivial_augment=true"),
    f"data.transforms=[{SOMETIMES}]",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """67 + 19 + 5 training images, 12 x 20, of which the last class looks much like the first."""
    root, generator = tmp_path_factory.mktemp("unequal"), np.random.default_rng(0)
    for part, counts in {"train": (67, 19, 5), "val": (11, 7, 5), "test": (13, 5, 4)}.items():
        for tone, name, count in zip((0, 90, 40), "abc", counts, strict=True):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 120, (12, 20, 3)) + tone
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.fixture
def small(root):
    return [
        *("data=folder", f"data.root={root}", "data.image_size=[12,20]", "data.crop_pad=2"),
        *("model=vit", "model.embed_dim=12", "model.num_heads=3", "model.ffn_dim=20"),
        *("model.num_layers=1", "model.stem=patch", "recipe.batch_size=10"),
        *("trainer.precision=32-true", "trainer.accelerator=cpu", "trainer.max_epochs=2"),
    ]


@pytest.fixture
def go(composed, tmp_path):
    """``go(folder, overrides)``: a run in a folder of ``tmp_path``."""

    def start(name: str, overrides: list[str]) -> Path:
        cfg = composed(overrides)
        cfg.run_dir = str(tmp_path / name)
        fit(cfg)
        return tmp_path / name

    return start


def losses(folder):
    return [row["train/loss"] for row in read_metrics(folder / "metrics.csv").values()]


@pytest.mark.slow
def test_what_is_asked_for_changes_the_run(go, small):
    """One after the other, each beside a run without it."""
    seen = {tuple(losses(go("plain", small)))}
    for name, more in {
        "color_jitter": PHOTOGRAPHS[0],
        "random_erasing": PHOTOGRAPHS[1],
        "trivial_augment": PHOTOGRAPHS[2],
        "transforms": PHOTOGRAPHS[3],
        "balanced_sampling": "data.balanced_sampling=true",
        "class_weights": "task.class_weights=balanced",
    }.items():
        seen.add(tuple(losses(go(name, [*small, "trainer.max_epochs=1", more]))))
    assert len(seen) == 7


def test_a_run_is_judged_by_macro_accuracy(go, small, capsys):
    folder = go("macro", [*small, "task.criterion=accuracy_macro", "data.balanced_sampling=true"])
    rows = read_metrics(folder / "metrics.csv").values()
    summary = json.loads((folder / "summary.json").read_text())
    best = max(row["val/accuracy_macro"] for row in rows)
    told = {"metric": "val/accuracy_macro", "mode": "max", "best": pytest.approx(best)}
    assert summary["criterion"] == told
    assert summary["test"].keys() >= {"accuracy", "accuracy_macro"}
    printed = capsys.readouterr().out
    assert f"val {best:.1%}" in printed
    assert "macro" in printed
    assert (folder / "curves.png").exists()
    saved = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    (callback,) = (v for k, v in saved["callbacks"].items() if k.startswith("BestCheckpoint"))
    assert callback["monitor"] == "val/accuracy_macro"


class Stop(Exception):
    """In place of a kill, in this process."""


@pytest.mark.slow
def test_a_run_with_all_of_it_goes_on_with_the_same_bits(go, small, monkeypatch, tmp_path):
    given = [*small, *PHOTOGRAPHS, "data.balanced_sampling=true", "task.class_weights=[1,2,3]"]
    given += ["task.criterion=accuracy_macro", "callbacks.last.every_minutes=0"]
    want = outcome(go("whole", given))
    steps = iter(range(1000))
    step = ClassificationTask.training_step

    def stop(self, *batch):
        if next(steps) == 12:  # in the second epoch
            raise Stop
        return step(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "training_step", stop)
        with pytest.raises(Stop):
            go("cut", given)
    last = f"ckpt_path={tmp_path / 'cut' / 'checkpoints' / 'last.ckpt'}"
    assert check_command_line([last], CONF)
    found = outcome(go("cut", [last]))
    assert not differences(want, found)
    # What it is judged by is kept.
    with pytest.raises(ConfigError, match="continued run keeps it"):
        go("cut", [last, "task.criterion=accuracy"])


def test_a_checkpoint_is_used_without_its_augmentation(go, small, root, tmp_path, capsys):
    """Here that of another's package, which is not there."""
    folder = go("run", [*small, *PHOTOGRAPHS, "trainer.max_epochs=1"])
    path = folder / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    data = saved["cvattn"]["meta"]["config"]["data"]
    assert data["transforms"][0]["_target_"].endswith("RandomApply")
    data["transforms"][0]["_target_"] = "evil_module.Thing"
    torch.save(saved, path)
    capsys.readouterr()
    assert main(["evaluate", str(path)]) == 0
    assert main(["predict", str(path), str(root / "test" / "a" / "0.png")]) == 0
    report = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    assert report["accuracy"] == pytest.approx(summary["test"]["accuracy"])
    assert report["accuracy_macro"] == pytest.approx(summary["test"]["accuracy_macro"])


@pytest.mark.sweep(6)
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.transforms=[{_target_:os.system,command:x}]", "expected a torchvision"),
        ("data.transforms=[{_target_:torch.nn.Identity}]", "expected a torchvision"),
        (
            f"data.transforms=[{SOMETIMES.replace(BLUR, '{_target_:os.system}')}]",
            r"data\.transforms\.0\.transforms\.0\._target_=os\.system: expected a torchvision",
        ),
        ("data.transforms=[GaussianBlur]", r"transforms\[0\]='GaussianBlur': expected a torchvis"),
        (
            "data.transforms=[{_target_:torchvision.transforms.v2.GausianBlur,kernel_size:3}]",
            r"no 'GausianBlur'; did you mean GaussianBlur\?",
        ),
        (f"data.transforms=[{BLUR.replace('kernel_size', 'kernel')}]", "no such argument"),
        (f"data.transforms=[{BLUR.replace(':3', ':4')}]", "data: .*odd"),
        (
            "data.transforms=[{_target_:torchvision.transforms.v2.Normalize,mean:[0],std:[1]}]",
            "data: .*Normalize, cannot be used.*after the transforms",
        ),
        (
            "data.transforms=[{_target_:torchvision.transforms.v2.CenterCrop,size:5}]",
            r"CenterCrop, makes \(3, 5, 5\) of an image \(3, 12, 20\)",
        ),
        ("data.trivial_augment=true data.rand_augment=2", "data: trivial_augment.*choose one"),
        ("data.color_jitter=much", r"data\.color_jitter='much': expected float"),
        ("data.random_erasing=1.5", "data: random_erasing must lie in 0..1"),
        ("data.balanced_sampling=1", r"data\.balanced_sampling=1: expected bool"),
        ("task.class_weights=[1,2]", "task: class_weights has 2 weights and there are 3 classes"),
        ("task.class_weights=even", r"task\.class_weights='even': expected one of balanced or"),
        ("task.criterion=macro", r"task\.criterion='macro': expected one of accuracy, accuracy_m"),
        ("task.class_weights=balanced data.balanced_sampling=true", "task and data: .*choose one"),
    ],
)
def test_what_cannot_be_is_refused_before_data_is_read(run, small, monkeypatch, override, message):
    from cvattn.data import FolderData

    monkeypatch.setattr(FolderData, "setup", lambda *_: pytest.fail("data was read"))
    with pytest.raises(ConfigError, match=message):
        run([*small, *override.split()])


def test_data_whose_classes_are_equal_has_no_balanced_sampling():
    with pytest.raises(ConfigError, match=r"unknown key 'data\.balanced_sampling'"):
        check_command_line(["data=cifar10", "data.balanced_sampling=true"], CONF)


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "folder"])
def test_the_keys_are_those_of_every_set_of_photographs(composed, data, tmp_path):
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (8, 8)).save(tmp_path / part / name / f"{i}.png")
    overrides = [f"data={data}", f"data.root={tmp_path}", *PHOTOGRAPHS]
    module, _ = resolve(composed(overrides), overrides)
    assert module._photo_augmentation.color_jitter == 0.4


@pytest.mark.slow
def test_transforms_of_ones_own_beside_the_command_line(run, small, tmp_path, monkeypatch):
    (tmp_path / "my_transforms.py").write_text(
        "from torchvision.transforms import v2\n"
        "class Darker(v2.Transform):\n"
        "    def __init__(self, by: int = 10):\n"
        "        super().__init__()\n"
        "        self.by = by\n"
        "    def transform(self, inpt, params):\n"
        "        return inpt.clamp(min=self.by) - self.by\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    given = [*small, "trainer.max_epochs=1", "trainer.limit_train_batches=2"]
    run([*given, "data.transforms=[{_target_:my_transforms.Darker,by:7}]"])
    assert "my_transforms.Darker" in (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(
        ConfigError, match=r"data\.transforms\.0\.bye?: Darker has no such argument"
    ):
        run([*given, "data.transforms=[{_target_:my_transforms.Darker,bye:7}]"])

"""``cvattn.fit``: a whole run of objects made in Python, and the parts with Lightning's Trainer."""

import json
import random
from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from killing import draw_images
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import cvattn
from cvattn.cli import main
from cvattn.data import DigitLinesData, DigitsData, FolderData, LoaderData
from cvattn.harness import ConfigError, check_command_line, resumable
from cvattn.harness.config.saved_run import open_run
from cvattn.tasks import ClassificationTask, NetworkTask

CPU = {"accelerator": "cpu", "precision": "32-true", "limit_train_batches": 3}


class Net(nn.Module):
    def __init__(self, num_classes, width=7):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.drop = nn.Dropout(0.3)
        self.attention = cvattn.SelfAttention2d(width, gamma_init=0.5)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.attention(self.drop(self.stem(x).relu())).mean((2, 3)))


class Noisy(Dataset):
    """Images with a draw of each of the three generators in them."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, at):
        draws = [torch.rand(()).item(), random.random(), float(np.random.rand())]  # noqa: NPY002
        image = torch.tensor(draws).view(3, 1, 1).expand(3, 9, 11) + 0.1 * at
        return image.clone(), at % 3


def loaders(workers=0, **values):
    train = DataLoader(Noisy(37), batch_size=4, shuffle=True, num_workers=workers)
    return LoaderData(train, DataLoader(Noisy(11), 5), DataLoader(Noisy(7), 5), classes=3, **values)


def weights(path):
    return cvattn.load(path, network=Net(3)).state_dict()


def equal(one, two):
    return all(torch.equal(one[key], two[key]) for key in one)


@pytest.fixture
def start(tmp_path):
    """``start(folder, epochs)``: a run of :class:`Net` on :class:`Noisy` images."""

    def run(folder, epochs, *, data=None, **more):
        torch.manual_seed(3)
        trainer = {**CPU, "limit_train_batches": 1.0, **more.pop("trainer", {})}
        values = {"folder": tmp_path / folder, "epochs": epochs, "trainer": trainer, **more}
        return cvattn.fit(Net(3), data or loaders(), **values)

    return run


class Stop(pl.Callback):
    """Saves a checkpoint after a batch, and ends the run there."""

    def __init__(self, epoch, batch, path):
        self.at, self.path = (epoch, batch), path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            trainer.save_checkpoint(self.path)
            raise SystemExit(143)


def test_a_run_leaves_what_train_py_leaves(tmp_path, capsys):
    torch.manual_seed(0)
    run = tmp_path / "run"
    summary = cvattn.fit(
        Net(10), DigitsData(batch_size=64), folder=run, epochs=2, trainer=CPU, notes="a remark"
    )
    assert summary == json.loads((run / "summary.json").read_text())
    assert (summary["epochs"], summary["steps"], summary["notes"]) == (2, 6, "a remark")
    assert {"config.yaml", "metrics.csv", "curves.png", "attention.png"} <= {
        path.name for path in run.iterdir()
    }
    text = capsys.readouterr().out
    assert "Net: Net" in text
    assert "cvattn.fit(..., folder=" in text
    last = run / "checkpoints" / "last.ckpt"
    again = cvattn.load(last, network=Net(10))
    images, labels, _ = DigitsData().example_images(400, "test")
    with torch.no_grad():
        right = (again(images).argmax(-1) == labels).float().mean().item()
    assert right == pytest.approx(summary["test"]["accuracy"], abs=1e-6)
    with pytest.raises(ConfigError, match=r"started from Python.*cvattn\.fit"):
        open_run(str(last))
    with pytest.raises(ConfigError, match=r"started from Python"):
        check_command_line([f"ckpt_path={last}"], "conf")


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_bit_for_bit_with_anyones_loaders(start, tmp_path, workers):
    made = partial(loaders, workers)
    whole = start("whole", 3, data=made())
    with pytest.raises(SystemExit):
        start("cut", 3, data=made(), callbacks=[Stop(1, 6, tmp_path / "middle.ckpt")])
    (tmp_path / "middle.ckpt").rename(tmp_path / "cut" / "checkpoints" / "last.ckpt")
    summary = start("cut", 3, data=made(), resume=True)
    assert summary["steps"] == whole["steps"] == 30
    assert summary["test"] == whole["test"]
    assert equal(
        weights(tmp_path / "whole/checkpoints/last.ckpt"),
        weights(tmp_path / "cut/checkpoints/last.ckpt"),
    )
    other = start("other", 3, data=loaders(workers, seed=1))
    assert other["test"] != whole["test"]


def test_a_network_in_eval_mode_is_trained_in_training_mode(tmp_path, capsys):
    network = Net(3).eval()
    frozen = Net(3)
    frozen.drop.eval()
    for each, said in ((network, True), (frozen, False)):
        cvattn.fit(each, loaders(), folder=tmp_path / str(said), epochs=1, trainer=CPU)
        assert ("was in eval mode" in capsys.readouterr().out) == said


def test_finished_longer_and_refused(start, tmp_path, capsys):
    first = start("run", 1)
    assert start("run", 1, resume=True) == first
    assert "Nothing to do" in capsys.readouterr().out
    assert start("run", 2, resume=True)["epochs"] == 2
    with pytest.raises(ConfigError, match=r"holds a run already.*resume=True"):
        start("run", 2)
    with pytest.raises(ConfigError, match=r"another network: head\.bias was \(3,\) and is \(4,\)"):
        cvattn.fit(Net(4), loaders(), folder=tmp_path / "run", epochs=3, resume=True, trainer=CPU)
    with pytest.raises(ConfigError, match=r"data: "):
        start("run", 3, resume=True, data=loaders(seed=5, name="others"))


def test_anyones_lightning_data_module(tmp_path):
    class Data(pl.LightningDataModule):
        def setup(self, stage):
            self.parts = [Noisy(n) for n in (23, 11)]

        def train_dataloader(self):
            return DataLoader(self.parts[0], 4, shuffle=True)

        def val_dataloader(self):
            return DataLoader(self.parts[1], 4)

    class Moves(Data):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch

    data = LoaderData.of(Data(), classes=["a", "b", "c"], mean=[0.5] * 3, std=[0.2] * 3)
    assert (data.describe().name, data.describe().classes) == ("Data", ("a", "b", "c"))
    summary = cvattn.fit(
        Net(3), data, folder=tmp_path / "run", epochs=1, trainer={**CPU, "limit_test_batches": 0}
    )
    assert summary["test"] == {}
    with pytest.raises(ValueError, match=r"Moves\.on_after_batch_transfer would not be called"):
        LoaderData.of(Moves(), classes=3)


def pairs(images, labels):
    return DataLoader(TensorDataset(images, labels), batch_size=2)


IMAGES, LABELS = torch.zeros(4, 3, 5, 7), torch.tensor([0, 1, 2, 0])
ODD = [
    (lambda: DataLoader(TensorDataset(IMAGES)), r"train: expected batches \(images, labels\)"),
    (lambda: DataLoader([{"image": IMAGES[0]}]), r"got a dict of 1; for others write a data"),
    (lambda: pairs(IMAGES.byte(), LABELS), r"expected images float .* got torch\.uint8"),
    (lambda: pairs(IMAGES[0], LABELS[:3]), r"expected images float .* shape \(2, 5, 7\)"),
    (lambda: pairs(IMAGES, LABELS.float()), r"expected whole labels \(2,\), got torch\.float32"),
    (lambda: pairs(IMAGES, LABELS + 2), r"first batch has labels 2 to 3, and there are 3 classes"),
    (list, r"train: the loader is empty"),
    (lambda: pairs(IMAGES[..., :6], LABELS), r"not alike: .*\(3, 5, 6\).*\(3, 5, 7\)"),
]


@pytest.mark.parametrize(("train", "message"), ODD)
def test_odd_loaders_are_named_before_training(tmp_path, train, message):
    good = pairs(IMAGES, LABELS)
    with pytest.raises((ConfigError, ValueError), match=message):
        cvattn.fit(Net(3), LoaderData(train(), good, good, classes=3), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_done_is_said(tmp_path):
    data = DigitsData(batch_size=64)
    for network, values, message in [
        (Net(9), {}, r"answers \(2, 3, 32, 32\) with \(2, 9\), and .* needs \(2, 10\)"),
        (Net(10), {"trainer": {"max_epoch": 3}}, r"max_epoch: .*did you mean max_epochs"),
        (Net(10), {"trainer": {"callbacks": []}}, r"trainer\['callbacks'\] is for callbacks="),
        (Net(10), {"epochs": 0}, r"max_epochs=0: expected at least 1"),
        (Net(10), {"optimizer": partial(torch.optim.SGD, lr=-1)}, r"optimizer: Invalid learning"),
    ]:
        with pytest.raises(ConfigError, match=message):
            cvattn.fit(network, data, **{"folder": tmp_path / "run", **values})
    with pytest.raises(ConfigError, match=r"data is a DataLoader; .*LoaderData\(train, val, test"):
        cvattn.fit(Net(10), DataLoader([]))
    with pytest.raises(ConfigError, match=r"has a text for each line: give a task"):
        cvattn.fit(Net(10), DigitLinesData(batch_size=4))
    task = ClassificationTask(Net(10), num_classes=10, optimizer=torch.optim.SGD)
    with pytest.raises(ConfigError, match="the task that was given has its own"):
        cvattn.fit(task, data, optimizer=torch.optim.SGD)
    many = DataLoader(Noisy(4), num_workers=1, persistent_workers=True)
    with pytest.raises(ValueError, match="persistent_workers"):
        LoaderData(many, many, classes=3)
    assert not (tmp_path / "run").exists()


def test_a_task_of_ones_own(tmp_path):
    class Pairs(NetworkTask):
        """Counts nothing but its loss, and does not say the size of its images."""

        criterion = cvattn.tasks.base.Criterion("val/loss", "min")

        @property
        def shown(self):
            return {"val/loss": "validation loss"}

        def training_step(self, batch, batch_idx):
            return self.network(batch[0]).square().mean()

        def validation_step(self, batch, batch_idx):
            self.log_epoch("val/loss", self.training_step(batch, batch_idx), len(batch[0]))

        def test_step(self, batch, batch_idx):
            self.log_epoch("test/loss", self.training_step(batch, batch_idx), len(batch[0]))

    task = Pairs(
        Net(2),
        optimizer=partial(torch.optim.SGD, lr=0.1),
        warmup=0.0,
        final=0.0,
        label_smoothing=0.0,
    )
    summary = cvattn.fit(task, loaders(), folder=tmp_path / "run", epochs=2, trainer=CPU)
    assert summary["criterion"]["metric"] == "val/loss"
    assert summary["criterion"]["best"] == pytest.approx(summary["val"]["loss"])


@pytest.mark.filterwarnings("ignore")  # of Lightning's own, which the harness keeps quiet
def test_the_parts_with_a_plain_trainer(tmp_path, capsys):
    """The lines of the page on Python, with a smaller network; stopped, gone on with, used."""
    draw_images(tmp_path / "images")
    data = partial(FolderData, root=tmp_path / "images", image_size=24, batch_size=8, flip="none")

    def trained(folder, epochs, path=None, stop=()):
        torch.manual_seed(5)
        classes = len(data().describe().classes)
        task = ClassificationTask(
            Net(classes), num_classes=classes, optimizer=partial(torch.optim.AdamW, lr=1e-3)
        )
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[*resumable(tmp_path / folder), *stop],
        )
        made = data()
        trainer.fit(task, made, ckpt_path=path, weights_only=True)
        return task.network, trainer.test(task, made, verbose=False)[0]

    whole, tested = trained("whole", 3)
    with pytest.raises(SystemExit):
        trained("cut", 3, stop=[Stop(1, 0, tmp_path / "middle.ckpt")])
    network, again = trained("cut", 3, path=tmp_path / "middle.ckpt")
    assert again == tested
    assert equal(network.state_dict(), whole.state_dict())
    opened = cvattn.load(
        tmp_path / "cut" / "last.ckpt", network=Net(len(data().describe().classes))
    )
    assert equal(opened.state_dict(), whole.state_dict())
    assert opened.meta["image_size"] == [24, 24]
    page = tmp_path / "page.html"
    cvattn.explore(opened, torch.randn(2, 3, 24, 24)).save(page)
    assert page.stat().st_size > 10_000
    assert main(["evaluate", str(tmp_path / "cut" / "last.ckpt")]) == 2
    assert "one's own" in capsys.readouterr().err

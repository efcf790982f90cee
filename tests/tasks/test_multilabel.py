"""Several labels: loss and metrics against scikit-learn."""

from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from plain_trainer import trainer
from sklearn.metrics import average_precision_score, f1_score
from torch import nn
from torch.utils.data import DataLoader

from cvattn.tasks import Criterion, MultilabelTask
from cvattn.tasks.average_precision import MeanAveragePrecision, average_precision

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*", "ignore:.*does not have many workers.*", "ignore:.*logging interval.*"
)
GENERATOR = torch.Generator().manual_seed(7)
IMAGES = torch.randn(31, 2, 3, 5, generator=GENERATOR)
LABELS = (torch.rand(31, 4, generator=GENERATOR) < torch.tensor([0.6, 0.3, 0.1, 0.0])).float()


class Several(pl.LightningDataModule):
    """Two uneven batches; nothing has the last label."""

    def train_dataloader(self):
        parts = zip(IMAGES.split(19), LABELS.split(19), strict=True)
        return DataLoader(list(parts), batch_size=None)

    val_dataloader = test_dataloader = train_dataloader


def make(**options) -> MultilabelTask:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(30, 4))
    options = {"optimizer": partial(torch.optim.SGD, lr=0.1)} | options
    return MultilabelTask(network, num_classes=4, **options)


@pytest.mark.usefixtures("float64")
@pytest.mark.filterwarnings("ignore:No positive class found")
def test_metrics_are_scikit_learns_of_the_whole_set(tmp_path):
    task = make(label_smoothing=0.2)
    with torch.no_grad():
        logits = task.network(IMAGES.double()).numpy()
    (result,) = trainer(tmp_path).test(task, datamodule=Several64(), verbose=False)
    shares, truth = 1 / (1 + np.exp(-logits)), LABELS.numpy()
    loss = -(truth * np.log(shares) + (1 - truth) * np.log(1 - shares)).mean()
    assert result["test/loss"] == pytest.approx(loss, rel=1e-6)
    precision = average_precision_score(truth[:, :3], shares[:, :3], average=None)
    assert result["test/mean_average_precision"] == pytest.approx(precision.mean(), abs=1e-6)
    f1 = f1_score(truth, shares > 0.5, average="macro", zero_division=0)
    assert result["test/f1_macro"] == pytest.approx(f1, abs=1e-6)
    assert 0 < f1 < 1
    each = average_precision(torch.from_numpy(logits), LABELS)
    np.testing.assert_allclose(each[:3], precision, rtol=1e-5)
    assert each[3].isnan()


class Several64(Several):
    def train_dataloader(self):
        parts = zip(IMAGES.double().split(19), LABELS.double().split(19), strict=True)
        return DataLoader(list(parts), batch_size=None)

    val_dataloader = test_dataloader = train_dataloader


@pytest.mark.parametrize("split", [1, 10, 31])
def test_ties_and_batches(split):
    logits = torch.randn(31, 4, generator=torch.Generator().manual_seed(1)).mul(2).round()
    metric = MeanAveragePrecision()
    for some, truth in zip(logits.split(split), LABELS.split(split), strict=True):
        metric.update(some, truth)
    want = average_precision_score(LABELS[:, :3], logits[:, :3], average="macro")
    assert metric.compute().item() == pytest.approx(want, abs=1e-6)
    metric.reset()
    metric.update(logits, torch.zeros(31, 4))
    assert metric.compute().isnan()


def test_likely_labels_stay_apart():
    """Where the share of each is 1 in float32."""
    logits, labels = (
        torch.tensor([[20.0], [21.0], [22.0], [0.0]]),
        torch.tensor([[0], [0], [1], [1]]),
    )
    want = average_precision_score(labels[:, 0], logits[:, 0])
    assert average_precision(logits, labels).item() == pytest.approx(want, abs=1e-6)
    assert want < 1


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_training_loss(tmp_path, smoothing):
    task = make(label_smoothing=smoothing)
    task.optimizer = partial(torch.optim.SGD, lr=0.0)
    with torch.no_grad():
        shares = task.network(IMAGES.double()).sigmoid()
    targets = LABELS.double() * (1 - smoothing) + smoothing / 2
    want = -(targets * shares.log() + (1 - targets) * (1 - shares).log()).mean().item()
    run = trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    run.fit(task, datamodule=Several64())
    assert run.callback_metrics["train/loss"].item() == pytest.approx(want)


def test_it_learns(tmp_path):
    task = make()
    run = trainer(tmp_path, max_epochs=60)
    run.fit(task, datamodule=Several())
    assert run.callback_metrics["val/mean_average_precision"] > 0.8
    assert task.criterion == Criterion("val/mean_average_precision", "max")
    assert set(task.shown) <= {"val/mean_average_precision"} | {
        f"test/{name}" for name in ("mean_average_precision", "f1_macro")
    }
    with torch.no_grad():
        assert torch.equal(task.predict_step((IMAGES, LABELS), 0), task.network(IMAGES))


def test_one_label_is_refused():
    with pytest.raises(ValueError, match="num_classes=1: expected 2 or more labels"):
        MultilabelTask(nn.Linear(1, 1), num_classes=1, optimizer=partial(torch.optim.SGD, lr=0.1))

"""Class weights and macro accuracy against scikit-learn, and that they act."""

from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from plain_trainer import trainer
from sklearn.metrics import balanced_accuracy_score
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.utils.data import DataLoader

from cvattn.tasks import ClassificationTask, Criterion
from cvattn.tasks.class_weights import balanced_weights, given_weights
from cvattn.tasks.macro_accuracy import MacroAccuracy

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*", "ignore:.*does not have many workers.*", "ignore:.*logging interval.*"
)
LABELS = torch.tensor([0] * 17 + [1] * 2 + [2] * 7 + [3] * 1)


class Unequal(pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        order = torch.randperm(len(LABELS), generator=generator)
        images = torch.randn(len(LABELS), 2, 3, 5, generator=generator)
        labels = LABELS[order]
        images[:, 0, 0, 0] += labels  # there is something to learn
        self.batches = [(images[:20], labels[:20]), (images[20:], labels[20:])]
        self.class_counts = LABELS.bincount()

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)

    val_dataloader = test_dataloader = train_dataloader


def make(**options) -> ClassificationTask:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(30, 4))
    options = {"optimizer": partial(torch.optim.SGD, lr=0.1)} | options
    return ClassificationTask(network, num_classes=4, **options)


def test_balanced_weights_are_scikit_learns():
    counts = LABELS.bincount()
    want = compute_class_weight("balanced", classes=np.arange(4), y=LABELS.numpy())
    np.testing.assert_allclose(balanced_weights(counts), want, rtol=1e-6)
    assert (balanced_weights(counts)[LABELS]).mean().item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"no training image of class 1 \(counted from 0\)"):
        balanced_weights(torch.tensor([3, 0, 2]))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", ["balanced", [0.5, 0.0, 3, 2.5]])
def test_the_training_loss_is_the_mean_of_weighted_losses(tmp_path, weights, smoothing):
    """Of the samples, whatever batch they come in; validation and test are not weighted."""
    task, data = make(class_weights=weights, label_smoothing=smoothing), Unequal()
    task.optimizer = partial(torch.optim.SGD, lr=0.0)
    images, labels = (torch.cat(parts) for parts in zip(*data.batches, strict=True))
    with torch.no_grad():
        logs = task.network(images).log_softmax(-1)
    if weights == "balanced":
        weights = compute_class_weight("balanced", classes=np.arange(4), y=LABELS.numpy())
    losses = []
    for row, label in zip(logs.tolist(), labels.tolist(), strict=True):
        hit = -(1 - smoothing) * weights[label] * row[label]
        losses.append(hit - smoothing / 4 * sum(w * x for w, x in zip(weights, row, strict=True)))
    run = trainer(tmp_path, max_epochs=1)
    run.fit(task, datamodule=data)
    found = run.callback_metrics
    assert found["train/loss"].item() == pytest.approx(np.mean(losses), rel=1e-6)
    plain = -logs[torch.arange(len(labels)), labels].mean().item()
    assert found["val/loss"].item() == pytest.approx(plain, rel=1e-6)
    assert abs(np.mean(losses) - plain) > 1e-3


@pytest.mark.usefixtures("float64")
def test_mixed_images_have_the_weights_of_both_classes(tmp_path):
    task = make(class_weights=[2.0, 2.0, 2.0, 2.0], mixup=1.0)
    data = Unequal()
    same = make(mixup=1.0)
    losses = []
    for each in (task, same):
        torch.manual_seed(5)
        run = trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
        run.fit(each, datamodule=data)
        losses.append(run.callback_metrics["train/loss"].item())
    assert losses[0] == pytest.approx(2 * losses[1])


def test_rare_classes_are_found_with_weights(tmp_path):
    recalls = []
    for weights in (None, "balanced"):
        task = make(class_weights=weights)
        run = trainer(tmp_path, max_epochs=3)
        run.fit(task, datamodule=Unequal())
        recalls.append(run.callback_metrics["val/accuracy_macro"].item())
    assert recalls[1] > recalls[0] + 0.1


def test_weights_are_no_part_of_the_state(tmp_path):
    plain, weighted = make(), make(class_weights=[1, 2, 3, 4])
    assert plain.state_dict().keys() == weighted.state_dict().keys()
    trainer(tmp_path).test(make(class_weights="balanced"), datamodule=Unequal(), verbose=False)


@pytest.mark.parametrize("split", [27, 11, 1])
@pytest.mark.parametrize("absent", [False, True], ids=["all", "absent"])
def test_macro_accuracy_is_scikit_learns(split, absent):
    generator = torch.Generator().manual_seed(11)
    logits = torch.randn(len(LABELS), 5, generator=generator)
    logits[torch.arange(len(LABELS)), LABELS] += 1
    labels = LABELS.clone()
    labels[labels == 2] = 0 if absent else 2  # no sample has the class, and some are taken for it
    assert (logits.argmax(-1) == 2).any()
    metric = MacroAccuracy(5)
    for some, truth in zip(logits.split(split), labels.split(split), strict=True):
        metric.update(some, truth)
    with pytest.warns(UserWarning, match="not in y_true"):
        want = balanced_accuracy_score(labels, logits.argmax(-1))
    assert metric.compute().item() == pytest.approx(want, abs=1e-7)
    metric.reset()
    metric.update(logits[:0], labels[:0])
    assert metric.compute().isnan()


def test_it_is_logged_beside_the_accuracy(tmp_path):
    task, data = make(), Unequal()
    images, labels = (torch.cat(parts) for parts in zip(*data.batches, strict=True))
    with torch.no_grad():
        guesses = task.network(images).argmax(-1)
    (result,) = trainer(tmp_path).test(task, datamodule=data, verbose=False)
    want = balanced_accuracy_score(labels, guesses)
    assert result["test/accuracy_macro"] == pytest.approx(want, abs=1e-6)
    assert result["test/accuracy_macro"] != pytest.approx(result["test/accuracy"], abs=0.01)


def test_what_it_is_judged_by_is_chosen():
    assert make().criterion == Criterion("val/accuracy", "max")
    task = make(criterion="accuracy_macro")
    assert task.criterion == Criterion("val/accuracy_macro", "max")
    assert "test/accuracy_macro" in task.shown
    assert "test/accuracy_macro" not in make().shown
    assert ClassificationTask.criterion_of({}) == make().criterion


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_weights": [1, 2, 3]}, "has 3 weights and there are 4 classes"),
        ({"class_weights": "balance"}, "expected null, balanced, or a list of 4 weights"),
        ({"class_weights": [1, 2, 3, -1]}, "expected numbers of 0 or more"),
        ({"class_weights": [0, 0, 0, 0]}, "not all of them 0"),
        ({"class_weights": [1, 2, 3, float("nan")]}, "expected numbers of 0 or more"),
        ({"criterion": "macro"}, "criterion='macro': expected one of accuracy, accuracy_macro"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_nobody_counts_or_both_even_out(tmp_path):
    data = Unequal()
    del data.class_counts
    run = trainer(tmp_path, max_epochs=1)
    with pytest.raises(ValueError, match="needs a data module with class_counts"):
        run.fit(make(class_weights="balanced"), datamodule=data)
    with pytest.raises(ValueError, match="needs a data module with class_counts"):
        run.fit(make(class_weights="balanced"), data.train_dataloader(), data.val_dataloader())
    data = Unequal()
    data.balanced_sampling = True
    with pytest.raises(ValueError, match="choose one"):
        run.fit(make(class_weights="balanced"), datamodule=data)


def test_no_weights_is_none():
    assert given_weights(None, 3) is given_weights("balanced", 3) is None

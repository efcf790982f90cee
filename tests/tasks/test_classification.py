from functools import partial

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from oracles import assert_near
from plain_trainer import trainer
from torch import nn
from torch.utils.data import DataLoader

from cvattn.blocks import SelfAttention2d, insert_attention
from cvattn.tasks import ClassificationTask

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*", "ignore:.*does not have many workers.*", "ignore:.*logging interval.*"
)


class Lists(pl.LightningDataModule):
    """Two uneven batches for each stage."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        images = torch.randn(11, 2, 3, 5, generator=generator)
        labels = torch.randint(0, 4, (11,), generator=generator)
        self.batches = [(images[:7], labels[:7]), (images[7:], labels[7:])]

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)

    val_dataloader = test_dataloader = train_dataloader


def make(**options) -> ClassificationTask:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(30, 4))
    return ClassificationTask(
        network, num_classes=4, optimizer=partial(torch.optim.SGD, lr=0.1), **options
    )


@pytest.mark.usefixtures("float64")
def test_metrics_are_those_of_the_whole_set_not_of_its_batches(tmp_path):
    task, data = make(label_smoothing=0.2), Lists()
    images = torch.cat([batch[0] for batch in data.batches])
    labels = torch.cat([batch[1] for batch in data.batches])
    with torch.no_grad():
        logits = task.network(images)
    (result,) = trainer(tmp_path).test(task, datamodule=data, verbose=False)
    assert result["test/loss"] == pytest.approx(F.cross_entropy(logits, labels).item())
    right = (logits.argmax(-1) == labels).double().mean().item()
    assert 0 < right < 1
    assert result["test/accuracy"] == pytest.approx(right)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "options",
    [{"max_epochs": 2}, {"max_steps": 3}, {"max_steps": 1, "accumulate_grad_batches": 2}],
    ids=["whole epochs", "cut epoch", "accumulated"],
)
def test_what_is_said_of_training_is_the_mean_over_the_samples_of_an_epoch(tmp_path, options):
    """Of its last epoch; the network stands still, and batches of 7 and 4 weigh as many samples."""
    task, data = make(), Lists()
    task.optimizer = partial(torch.optim.SGD, lr=0.0)
    used = data.batches[: 1 if options == {"max_steps": 3} else 2]
    images, labels = (torch.cat(parts) for parts in zip(*used, strict=True))
    with torch.no_grad():
        logits = task.network(images)
    run = trainer(tmp_path, **options)
    run.fit(task, datamodule=data)
    found = run.callback_metrics
    assert found["train/loss"].item() == pytest.approx(F.cross_entropy(logits, labels).item())
    right = (logits.argmax(-1) == labels).double().mean().item()
    assert found["train/accuracy"].item() == pytest.approx(right)


@pytest.mark.usefixtures("float64")
def test_what_stops_in_the_middle_of_an_epoch_is_counted_too(tmp_path):
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = True

    task, data = make(), Lists()
    images, labels = data.batches[0]
    with torch.no_grad():
        want = F.cross_entropy(task.network(images), labels).item()
    run = trainer(tmp_path, max_epochs=3, callbacks=[Stop()])
    run.fit(task, datamodule=data)
    assert run.callback_metrics["train/loss"].item() == pytest.approx(want)


@pytest.mark.usefixtures("float64")
def test_label_smoothing_is_for_training_alone(tmp_path):
    task, data = make(label_smoothing=0.2), Lists()
    with torch.no_grad():
        logits = task.network(data.batches[0][0])
    labels = data.batches[0][1]
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    run.fit(task, datamodule=data)
    smoothed = F.cross_entropy(logits, labels, label_smoothing=0.2).item()
    assert run.callback_metrics["train/loss"].item() == pytest.approx(smoothed)
    assert abs(smoothed - F.cross_entropy(logits, labels).item()) > 1e-3


def test_training_lowers_the_loss_and_the_schedule_ends_at_zero(tmp_path):
    task, data = make(), Lists()
    run = trainer(tmp_path, max_epochs=30, limit_val_batches=0)
    before = F.cross_entropy(task.network(data.batches[0][0]), data.batches[0][1]).item()
    run.fit(task, datamodule=data)
    after = F.cross_entropy(task.network(data.batches[0][0]), data.batches[0][1]).item()
    assert after < before - 0.3
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.usefixtures("float64")
def test_inserted_blocks_learn_at_a_rate_of_their_own(tmp_path):
    """They and nobody else move ten times as far, in a first step without warm-up."""

    def moved(inserted_lr):
        torch.manual_seed(3)
        network = nn.Sequential(nn.Conv2d(2, 8, 1), nn.Flatten(), nn.Linear(120, 4))
        insert_attention(network, after="0", block=partial(SelfAttention2d, gamma_init=0.7))
        before = {name: value.detach().clone() for name, value in network.named_parameters()}
        task = ClassificationTask(
            network,
            num_classes=4,
            optimizer=partial(torch.optim.SGD, lr=0.01),
            warmup=0.0,
            inserted_lr=inserted_lr,
        )
        run = trainer(tmp_path, max_steps=1, limit_train_batches=1, limit_val_batches=0)
        run.fit(task, datamodule=Lists())
        return {name: value.detach() - before[name] for name, value in network.named_parameters()}

    plain, faster = moved(1.0), moved(10.0)
    for name in plain:
        if not name.endswith("key.bias"):  # it moves all scores of a query alike: no gradient
            assert plain[name].abs().max() > 0, name
            times = 10 if "inserted_attention" in name else 1
            assert_near(faster[name], times * plain[name], name)


def test_a_schedule_without_an_end_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"set trainer\.max_epochs or trainer\.max_steps"):
        trainer(tmp_path, max_epochs=-1).fit(make(), datamodule=Lists())


def test_images_reach_the_network_in_the_asked_memory_format():
    seen = []
    task = make(channels_last=True)
    task.network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten(), nn.Linear(45, 4))
    task.network[0].register_forward_pre_hook(
        lambda _, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    task(torch.randn(2, 2, 3, 5))
    assert seen == [True]


def test_impossible_smoothing():
    with pytest.raises(ValueError, match=r"label_smoothing=1\.5"):
        make(label_smoothing=1.5)


def test_test_images_are_also_seen_in_several_views(tmp_path):
    task, data = make(test_views="flip"), Lists()
    images = torch.cat([batch[0] for batch in data.batches])
    labels = torch.cat([batch[1] for batch in data.batches])
    with torch.no_grad():
        logits = task.network(images) + task.network(images.flip(-1))
    (result,) = trainer(tmp_path).test(task, datamodule=data, verbose=False)
    right = (logits.argmax(-1) == labels).double().mean().item()
    assert result["test/accuracy_views"] == pytest.approx(right)
    assert result["test/accuracy_views"] != result["test/accuracy"]
    (plain,) = trainer(tmp_path).test(make(), datamodule=data, verbose=False)
    assert plain["test/accuracy"] == result["test/accuracy"]
    assert "test/accuracy_views" not in plain


def test_mixed_images_train_towards_both_classes(tmp_path):
    task, data = make(mixup=1.0, label_smoothing=0.1), Lists()
    seen = []
    task.network[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    run.fit(task, datamodule=data)
    images = data.batches[0][0]
    assert not torch.equal(seen[0], images)
    # The share of the second image, from one pixel of the first.
    shifted = images.roll(1, 0)
    share = ((seen[0] - images) / (shifted - images)).flatten()[0].item()
    remainder = (images * (1 - share) + shifted * share - seen[0]).abs().max()
    assert remainder < 1e-4

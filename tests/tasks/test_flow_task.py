"""The flow task: what is validated is the same for any batches and processes."""

from functools import partial

import pytest
import torch
from oracles import assert_near
from plain_trainer import trainer
from torch import nn
from torch.utils.data import DataLoader

from cvattn.data.counter import normal
from cvattn.models import UNet
from cvattn.tasks import ClassificationTask, FlowTask

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*", "ignore:.*does not have many workers.*", "ignore:.*logging interval.*"
)


class Told(nn.Module):
    """A network that notes what it is called with, and says a share of what it sees."""

    timed = True

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.share = nn.Parameter(torch.tensor(0.25))
        self.seen: list = []

    def forward(self, images, times, labels=None):
        self.seen.append((images.detach(), times, labels))
        return self.share * images


def make(classes: int = 4, **options) -> FlowTask:
    return FlowTask(
        Told(classes), num_classes=4, optimizer=partial(torch.optim.SGD, lr=0.0), **options
    )


def samples(count: int = 23) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(count, 2, 3, 5, generator=generator)
    return images, torch.randint(0, 4, (count,), generator=generator)


def batches(*sizes: int) -> DataLoader:
    images, labels = samples(sum(sizes))
    return DataLoader(
        list(zip(images.split(sizes), labels.split(sizes), strict=True)), batch_size=None
    )


@pytest.mark.usefixtures("float64")
def test_the_validation_loss_is_the_formula_whatever_the_batches(tmp_path):
    images, _ = samples()
    noise = normal(0x5EED, 0, torch.arange(images.numel())).view(images.shape)
    times = (torch.arange(23) % 16 + 0.5) / 16
    t = times.view(-1, 1, 1, 1)
    x = (1 - t) * noise + t * images
    want = ((0.25 * x - (images - noise)) ** 2).mean()
    for sizes in ((23,), (7, 16), (11, 11, 1)):
        task = make()
        (found,) = trainer(tmp_path).validate(task, batches(*sizes), verbose=False)
        assert found["val/loss"] == pytest.approx(float(want), rel=1e-6)  # meaned in float32
        seen = torch.cat([given for given, _, _ in task.network.seen])
        assert_near(seen, x)
        (tested,) = trainer(tmp_path).test(task, batches(*sizes), verbose=False)
        assert tested["test/loss"] == pytest.approx(found["val/loss"])


def test_each_process_judges_its_own_places(tmp_path):
    """Two processes see together what one sees alone."""
    task = make()
    images, _ = samples(11)
    whole = trainer(tmp_path)
    task._trainer = whole
    together = task._fixed(images)
    for rank in (0, 1):
        part = make()
        part._trainer = type("Place", (), {"world_size": 2, "global_rank": rank})()
        first, second = part._fixed(images[rank::2][:2]), part._fixed(images[rank::2][2:])
        for own, other, of_all in zip(first, second, together, strict=True):
            assert torch.equal(torch.cat([own, other]), of_all[rank::2])


@pytest.mark.parametrize(("dropout", "told"), [(0.0, {0, 1, 2, 3}), (1.0, {4})])
def test_labels_are_left_out_in_training_alone(tmp_path, dropout, told):
    task = make(label_dropout=dropout)
    trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0).fit(task, batches(60, 60), batches(60))
    *training, validation = [set(labels.tolist()) for _, _, labels in task.network.seen]
    assert training == [told, told]
    assert validation == {0, 1, 2, 3}


def test_times_of_training_are_spread_as_asked(tmp_path):
    for times, share in (("uniform", 0.5), ("logit_normal", 0.7287)):
        task = make(times=times)
        trainer(tmp_path, max_epochs=1).fit(task, batches(4000), batches(2))
        *_, seen, _ = [t for _, t, _ in task.network.seen]
        assert 0 <= seen.min() < 0.1
        assert 0.9 < seen.max() <= 1
        # The share between 1/4 and 3/4: half, or that of a normal number within log 3.
        assert ((seen > 0.25) & (seen < 0.75)).float().mean() == pytest.approx(share, abs=0.035)


def test_a_network_without_classes_is_told_none(tmp_path):
    task = make(classes=0)
    trainer(tmp_path, max_epochs=1).fit(task, batches(5), batches(5))
    assert all(labels is None for _, _, labels in task.network.seen)
    assert len(task.call_arguments(torch.zeros(2, 2, 3, 5))) == 2


def test_predict_makes_an_image_of_each_label(tmp_path):
    network = UNet(2, image_size=(4, 6), classes=4, width=4, multipliers=(1, 2), attention_at=())
    nn.init.normal_(network.head.weight)
    task = FlowTask(network, num_classes=4, optimizer=partial(torch.optim.SGD, lr=0.0))
    images = torch.zeros(7, 2, 4, 6)
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    loader = DataLoader([(images[:5], labels[:5]), (images[5:], labels[5:])], batch_size=None)
    made = torch.cat(trainer(tmp_path).predict(task, loader))
    assert made.shape == images.shape
    # Other noise and another label each; whole again in the same run.
    assert len({float(image.sum()) for image in made}) == 7
    assert torch.equal(torch.cat(trainer(tmp_path).predict(task, loader)), made)


def test_refusals():
    optimizer = partial(torch.optim.SGD, lr=0.1)
    with pytest.raises(TypeError, match="Linear makes no images"):
        FlowTask(nn.Linear(2, 3), num_classes=4, optimizer=optimizer)
    with pytest.raises(TypeError, match=r"UNet makes no images.*timed=true"):
        FlowTask(UNet(3, timed=False), num_classes=4, optimizer=optimizer)
    with pytest.raises(ValueError, match="told 5 classes and the data has 4"):
        make(classes=5)
    with pytest.raises(ValueError, match=r"label_dropout=1\.5"):
        make(label_dropout=1.5)
    with pytest.raises(ValueError, match="times='cosine'; expected one of"):
        make(times="cosine")


def test_what_a_run_is_judged_by():
    assert FlowTask.criterion == ("val/loss", "min")
    assert FlowTask.criterion.score(0.25) == -0.25
    assert ClassificationTask.criterion.score(0.25) == 0.25

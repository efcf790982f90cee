"""A network learns from a trained one: what the loss is, what is left alone, what is refused."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_accurate
from plain_trainer import trainer
from torch import nn
from torch.utils.data import DataLoader

import cvattn
from cvattn.data import DigitsData
from cvattn.tasks import ClassificationTask, Teacher
from cvattn.tasks.teacher import distillation_loss

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*", "ignore:.*does not have many workers.*", "ignore:.*logging interval.*"
)


def written_down(logits, taught, temperature):
    """The two losses, a sample and a class at a time."""
    losses = []
    for ours, its in zip(logits, taught, strict=True):
        if temperature is None:
            losses.append(ours.logsumexp(0) - ours[its.argmax()])
            continue
        p, q = ((x / temperature).exp() / (x / temperature).exp().sum() for x in (its, ours))
        losses.append(temperature**2 * sum(a * (a / b).log() for a, b in zip(p, q, strict=True)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [None, 1.0, 3.7])
def test_the_loss_is_the_formulas(temperature):
    logits, taught = torch.randn(5, 7), torch.randn(5, 7)
    loss = partial(distillation_loss, temperature=temperature)
    formula = partial(written_down, temperature=temperature)
    assert_accurate(loss(logits, taught), formula, logits, taught)
    logits.requires_grad_()
    (found,) = torch.autograd.grad(loss(logits, taught), logits)

    def gradient(logits, taught):
        logits = logits.detach().requires_grad_()
        return torch.autograd.grad(formula(logits, taught), logits)[0]

    assert_accurate(found, gradient, logits.detach(), taught)


class Cut(nn.Module):
    """Logits of a classifier for images of any size, and the sizes that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5))
        self.head = nn.Linear(6, 4)
        self.sizes = []

    def forward(self, images):
        self.sizes.append(tuple(images.shape[-2:]))
        return self.head(self.body(images).mean((-2, -1)))


def task_of(teacher, **options):
    torch.manual_seed(1)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(18, 4))
    optimizer = partial(torch.optim.SGD, lr=0.0, weight_decay=0.1)
    return ClassificationTask(
        network, num_classes=4, optimizer=optimizer, teacher=teacher, **options
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("temperature", [None, 2.0])
def test_a_step_of_training(tmp_path, temperature):
    """The teacher sees the images in full and is not changed; the labels have the rest."""
    teacher = Cut()
    options = {"teacher_share": 0.3, "teacher_temperature": temperature}
    task = task_of(teacher, resizing=[[0.5, 1]], **options)
    assert not [name for name in task.state_dict() if name.startswith("teacher")]
    assert len(list(task.parameters())) == 2
    before = {name: value.clone() for name, value in task.teacher.network.state_dict().items()}
    images, labels = torch.randn(5, 2, 14, 10), torch.tensor([0, 3, 1, 1, 2])
    small = F.interpolate(images, (7, 5), mode="bilinear", antialias=True)
    with torch.no_grad():
        logits, taught = task.network(small), teacher.eval()(images)
    run = trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    loader = DataLoader([(images, labels)], batch_size=None)
    run.fit(task, loader, loader)
    want = 0.7 * F.cross_entropy(logits, labels) + 0.3 * written_down(logits, taught, temperature)
    assert run.callback_metrics["train/loss"].item() == pytest.approx(want.item(), rel=1e-6)
    assert task.teacher.network.sizes == [(14, 10)]
    after = task.teacher.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert teacher.body[0].weight.requires_grad  # what was given is the caller's


def test_images_come_as_it_was_trained_on_them():
    """The digits of another normalisation get the logits of their own."""
    data = DigitsData()
    data.setup("fit")
    info = data.describe()
    images = data.example_images(7)[0]
    teacher, as_is = Teacher("sagan-digits"), cvattn.load("sagan-digits")
    with torch.no_grad():
        want = as_is(images)
    teacher.meet(info)
    torch.testing.assert_close(teacher(images), want)
    mean, std = (0.3, 0.4, 0.2), (0.7, 0.5, 0.6)
    teacher.meet(replace(info, mean=mean, std=std))
    own, other = (
        [torch.tensor(values)[:, None, None] for values in pair]
        for pair in ((info.mean, info.std), (mean, std))
    )
    given = (images * own[1] + own[0] - other[0]) / other[1]
    torch.testing.assert_close(teacher(given), want, rtol=1e-4, atol=1e-4)
    assert (teacher(images) - want).abs().max() > 0.1
    teacher.meet(info)
    torch.testing.assert_close(teacher(images), want)
    assert teacher(images.double()).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": tuple("abcdefghij")}, r"its classes is \['0', '1', .*expected one train"),
        (
            {"image_size": (16, 32)},
            r"its image size is \[32, 32\], and that of the data \[16, 32\]",
        ),
        ({"channels": 1}, "its channels is 3, and that of the data 1"),
    ],
)
def test_other_images_are_refused(change, message):
    info = DigitsData().describe()
    teacher = Teacher("sagan-digits")
    with pytest.raises(ValueError, match="teacher=sagan-digits: " + message):
        teacher.meet(replace(info, **change))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": "gone.ckpt"}, "teacher: no checkpoint at gone.ckpt; by name there are"),
        ({"teacher_share": 0.0}, r"teacher_share=0.0: expected a share of the loss in \(0, 1\]"),
        ({"teacher_share": 1.5}, "teacher_share=1.5"),
        ({"teacher_temperature": 0.0}, "teacher_temperature=0.0: expected a number above 0, or nu"),
        ({"teacher_temperature": math.inf}, "teacher_temperature=inf"),
    ],
)
def test_what_teaches_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        task_of(**({"teacher": Cut()} | options))


@pytest.mark.parametrize("options", [{"teacher_share": 0.3}, {"teacher_temperature": 2.0}])
def test_values_of_a_teacher_that_is_not_there_are_refused(options):
    with pytest.raises(ValueError, match="there is no teacher that they are of; expected teacher="):
        task_of(None, **options)

"""The segmentation task: loss and mean IoU of all labelled pixels, whatever the batches."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from plain_trainer import trainer
from torch import nn
from torch.utils.data import DataLoader

from cvattn.data import VOID
from cvattn.models import SAGANClassifier, UNet
from cvattn.tasks import SegmentationTask
from cvattn.tasks.mean_iou import MeanIoU, PixelAccuracy, class_iou, mean_iou

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*", "ignore:.*does not have many workers.*", "ignore:.*logging interval.*"
)
CLASSES, SIZE = 5, (3, 7)


def make(**options) -> SegmentationTask:
    torch.manual_seed(3)
    network = nn.Conv2d(2, CLASSES, 3, padding=1)
    options = {"num_classes": CLASSES, "optimizer": partial(torch.optim.SGD, lr=0.0)} | options
    return SegmentationTask(network, **options)


def samples(count=11, void=0.3):
    """Images and masks; the second class is in no mask, and an image in three is void."""
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(count, 2, *SIZE, generator=generator)
    masks = torch.tensor([0, 2, 3, 4])[torch.randint(0, 4, (count, *SIZE), generator=generator)]
    masks[torch.rand(count, *SIZE, generator=generator) < void] = VOID
    masks[::3] = VOID
    return images, masks.to(torch.uint8)


def batches(*sizes):
    images, masks = samples(sum(sizes))
    return DataLoader(
        list(zip(images.split(sizes), masks.split(sizes), strict=True)), batch_size=None
    )


def slow_mean_iou(guesses, masks):
    """By sets of pixels, as the term says."""
    found = []
    for each in range(CLASSES):
        real = masks != VOID
        here, said = (masks == each) & real, (guesses == each) & real
        if (here | said).any():
            found.append((here & said).sum() / (here | said).sum())
    return np.mean(found)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("sizes", [(11,), (7, 4), (1, 3, 6, 1)])
def test_metrics_are_those_of_all_labelled_pixels(tmp_path, sizes):
    task, (images, masks) = make(label_smoothing=0.2), samples()
    with torch.no_grad():
        logits = task.network(images)
    (found,) = trainer(tmp_path).test(task, batches(*sizes), verbose=False)
    flat = logits.movedim(1, -1)[masks != VOID]
    want = F.cross_entropy(flat, masks[masks != VOID].long())
    assert found["test/loss"] == pytest.approx(want.item())
    guesses = logits.argmax(1)
    iou = slow_mean_iou(guesses.numpy(), masks.numpy())
    assert found["test/mean_iou"] == pytest.approx(iou)
    right = (guesses == masks)[masks != VOID].double().mean().item()
    assert found["test/pixel_accuracy"] == pytest.approx(right)
    assert 0 < iou < right < 1
    (again,) = trainer(tmp_path).validate(task, batches(*sizes), verbose=False)
    assert again == {key.replace("test", "val"): value for key, value in found.items()}


@pytest.mark.usefixtures("float64")
def test_what_is_said_of_training_is_the_mean_over_labelled_pixels(tmp_path):
    task, (images, masks) = make(label_smoothing=0.2), samples()
    run = trainer(tmp_path, max_epochs=2)
    run.fit(task, batches(1, 3, 7), batches(11))
    flat, real = task.network(images).movedim(1, -1)[masks != VOID], masks[masks != VOID].long()
    want = F.cross_entropy(flat, real, label_smoothing=0.2)
    assert run.callback_metrics["train/loss"].item() == pytest.approx(want.item())
    right = (flat.argmax(-1) == real).double().mean().item()
    assert run.callback_metrics["train/pixel_accuracy"].item() == pytest.approx(right)
    assert task.size == SIZE


def test_a_batch_without_a_class_changes_nothing_and_stays_finite(tmp_path):
    optimizer = partial(torch.optim.SGD, lr=0.1)
    images, masks = samples()
    void = (images[:3], torch.full_like(masks[:3], VOID))
    states = []
    for batches in ([(images, masks)], [(images, masks), void]):
        task = make(optimizer=optimizer, warmup=0.0, final=1.0)
        run = trainer(tmp_path, max_epochs=1)
        loader = DataLoader(batches, batch_size=None)
        run.fit(task, loader, loader)
        states.append(task.network.state_dict())
        losses = {key: float(value) for key, value in run.callback_metrics.items()}
        assert all(np.isfinite(value) for value in losses.values())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_classes_that_are_absent_do_not_count_and_those_only_said_are_wrong():
    confusion = torch.tensor([[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    both = torch.tensor([6 / 9, 3 / 6], dtype=torch.float64)
    assert torch.allclose(class_iou(confusion)[:2], both)
    assert class_iou(confusion)[2:].isnan().all()
    assert mean_iou(confusion) == pytest.approx(float(both.mean()))
    said = confusion.clone()
    said[0, 2] = 1  # a pixel is taken for a class that is nowhere
    assert mean_iou(said) == pytest.approx((6 / 10 + 3 / 6 + 0) / 3)
    assert mean_iou(torch.zeros(4, 4)).isnan()


def test_processes_sum_up_their_counts():
    """Two halves, put together as torchmetrics does it, are the whole."""
    images, masks = samples(12)
    guesses = images[:, 0].mul(10).long() % CLASSES
    for kind in (MeanIoU, PixelAccuracy):
        parts, whole = [kind(CLASSES) for _ in range(2)], kind(CLASSES)
        for rank, part in enumerate(parts):
            part.update(guesses[rank::2], masks[rank::2].long())
        whole.update(guesses, masks.long())
        parts[0].merge_state(parts[1])
        assert parts[0].compute() == whole.compute()
        assert whole.compute() != parts[1].compute()


def test_predict_gives_masks(tmp_path):
    task, (images, _) = make(), samples()
    found = torch.cat(trainer(tmp_path).predict(task, batches(7, 4)))
    assert torch.equal(found, task.network(images).argmax(1))


def test_it_learns_what_each_pixel_shows(tmp_path):
    images, _ = samples(40)
    masks = (images[:, 0] > images[:, 1]).to(torch.uint8)
    loader = DataLoader([(images, masks)] * 60, batch_size=None)
    task = make(optimizer=partial(torch.optim.AdamW, lr=0.1))
    run = trainer(tmp_path, max_epochs=1)
    run.fit(task, loader, DataLoader([(images, masks)], batch_size=None))
    assert run.callback_metrics["val/mean_iou"] > 0.9
    assert task.criterion == ("val/mean_iou", "max")


def test_refusals():
    optimizer = partial(torch.optim.SGD, lr=0.1)
    with pytest.raises(TypeError, match=r"SAGANClassifier names whole images.*segmenter, and unet"):
        SegmentationTask(SAGANClassifier(4), num_classes=4, optimizer=optimizer)
    with pytest.raises(TypeError, match="timed=false and classes=0"):
        SegmentationTask(UNet(3, 4), num_classes=4, optimizer=optimizer)
    with pytest.raises(TypeError, match="timed=false and classes=0"):
        SegmentationTask(UNet(3, 4, timed=False, classes=4), num_classes=4, optimizer=optimizer)
    with pytest.raises(ValueError, match=r"gives 3 maps, the data has 4 .*out_channels= out"):
        SegmentationTask(UNet(3, timed=False), num_classes=4, optimizer=optimizer)

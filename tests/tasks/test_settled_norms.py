"""The batch norms of an averaged generator have the statistics of what it makes itself."""

from functools import partial

import pytest
import torch
from torch import nn

from cvattn.models import SAGAN
from cvattn.tasks import GANTask


def settled(classes=3, counts=None):
    torch.manual_seed(0)
    network = SAGAN(1, image_size=(16, 24), classes=classes, width=8, noise_dim=5)
    optimizer = partial(torch.optim.Adam, lr=1e-3)
    task = GANTask(
        network, num_classes=3, optimizer=optimizer, discriminator_optimizer=optimizer
    ).eval()
    data = type("Data", (), {} if counts is None else {"class_counts": torch.tensor(counts)})()
    trainer = type("Trainer", (), {"datamodule": data, "world_size": 1, "global_rank": 0})()
    task._trainer = trainer
    for module in network.modules():
        if hasattr(module, "gamma"):
            nn.init.constant_(module.gamma, 0.7)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.constant_(module.running_var, 7.0)
    return task


def norms(task):
    return [m for m in task.network.generator.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize(
    ("classes", "counts"), [(3, None), (3, [100, 300, 600]), (0, None), (0, [1, 2, 3])]
)
def test_they_are_those_of_its_images(classes, counts):
    """Against the moments of what reaches the last norm, of noise and labels of our own."""
    task = settled(classes, counts)
    others = {
        name: buffer.clone()
        for name, buffer in task.named_buffers()
        if "running" not in name and "num_batches" not in name
    }
    random = torch.get_rng_state()
    assert task.settle()
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(dict(task.named_buffers())[name], was) for name, was in others.items())
    first, last = norms(task)[0], norms(task)[-1]
    assert not first.training
    assert first.momentum == last.momentum == 0.1

    met = []
    last.register_forward_pre_hook(lambda _, given: met.append(given[0]))
    generator = torch.Generator().manual_seed(1)
    shares = torch.tensor(counts or [1, 1, 1]).float()
    labels = torch.multinomial(shares, 4000, replacement=True, generator=generator)
    with torch.no_grad():
        task(torch.randn(4000, 5, generator=generator), labels)
    values = met[0].transpose(0, 1).flatten(1)
    spread = values.std(1)
    # By chance: of 1,024 images and 4,000, whose positions are alike; and the batches' own noise.
    assert ((last.running_mean - values.mean(1)).abs() < 0.15 * spread).all()
    assert (last.running_var / values.var(1)).log().abs().max() < 0.2
    before = [norm.running_mean.clone() for norm in norms(task)]
    assert task.settle()
    assert all(torch.equal(a, b.running_mean) for a, b in zip(before, norms(task), strict=True))


def test_without_batch_norms_there_is_nothing_to_measure():
    task = settled()
    task.network.generator = nn.Linear(5, 6)
    assert not task.settle()


def test_classes_come_as_in_the_training_data():
    task = settled(3, [100, 300, 600])
    labels = task._labels_as_in_training(torch.arange(1024))
    shares = labels.bincount() / 1024
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.3, 0.6]), atol=1 / 1024, rtol=0)

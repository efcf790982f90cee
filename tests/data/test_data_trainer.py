"""The data modules under Lightning: real runs on one process, pretended ranks for several."""

import types

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from cvattn.data import DigitsData

# Lightning's own, about torch's pytree; a warning of ours stays an error.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Recorder(pl.LightningModule):
    """A linear classifier that remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
        self.seen = {"train": [], "val": [], "test": []}

    def training_step(self, batch, batch_idx):
        images, labels = batch
        assert images.dtype == torch.float32
        self.seen["train"].append((self.current_epoch, images.clone(), labels.clone()))
        return nn.functional.cross_entropy(self.network(images), labels)

    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(len(batch[1]))

    def test_step(self, batch, batch_idx):
        self.seen["test"].append(len(batch[1]))

    def predict_step(self, batch, batch_idx):
        return self.network(batch[0]).argmax(1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def run(data, **settings):
    module = Recorder()
    trainer = pl.Trainer(**QUIET, **settings)
    trainer.fit(module, datamodule=data)
    return trainer, module


def test_fit_test_and_predict_on_one_process():
    data = DigitsData(batch_size=200, eval_batch_size=100)
    trainer, module = run(data, max_epochs=2, num_sanity_val_steps=0)
    epochs = [epoch for epoch, _, _ in module.seen["train"]]
    assert epochs == [0] * 6 + [1] * 6
    assert sum(module.seen["val"]) == 2 * 180
    # What came through the trainer is what the loader gives for that epoch, alone.
    alone = DigitsData(batch_size=200)
    loader = alone.train_dataloader()
    for epoch in (0, 1):
        given = [x for e, x, _ in module.seen["train"] if e == epoch]
        for index, images in zip(loader.batch_indices(epoch), given, strict=True):
            assert torch.equal(loader.batch(index, epoch)[0], images)
    trainer.test(module, datamodule=data, verbose=False)
    assert sum(module.seen["test"]) == 360
    predicted = torch.cat(trainer.predict(module, datamodule=data))
    assert predicted.shape == (360,)


def test_limits_and_fast_dev_run_work():
    _, module = run(
        DigitsData(batch_size=100, eval_batch_size=50),
        max_epochs=1,
        limit_train_batches=3,
        limit_val_batches=0.5,
        num_sanity_val_steps=0,
    )
    assert len(module.seen["train"]) == 3
    assert module.seen["val"] == [45, 45]  # half of 4 batches
    _, module = run(DigitsData(batch_size=100), fast_dev_run=True)
    assert len(module.seen["train"]) == 1


def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(tmp_path):
    _, whole = run(DigitsData(batch_size=300), max_epochs=3, num_sanity_val_steps=0)
    trainer, first = run(DigitsData(batch_size=300), max_epochs=2, num_sanity_val_steps=0)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    second = Recorder()
    trainer = pl.Trainer(**QUIET, max_epochs=3, num_sanity_val_steps=0)
    trainer.fit(second, datamodule=DigitsData(batch_size=300), ckpt_path=tmp_path / "two.ckpt")
    parts = first.seen["train"] + second.seen["train"]
    assert len(parts) == len(whole.seen["train"]) == 12
    for (e1, x1, y1), (e2, x2, y2) in zip(parts, whole.seen["train"], strict=True):
        assert e1 == e2
        assert torch.equal(x1, x2)
        assert torch.equal(y1, y2)
    for a, b in zip(second.parameters(), whole.parameters(), strict=True):
        assert a.shape == b.shape


def pretend(rank, world_size, **arguments):
    """A data module attached to what looks like a trainer of several processes."""
    data = DigitsData(**arguments)
    strategy = types.SimpleNamespace(root_device=torch.device("cpu"))
    fit_loop = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False).fit_loop
    data.trainer = types.SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        current_epoch=5,
        strategy=strategy,
        overfit_batches=0.0,
        fit_loop=fit_loop,
    )
    return data


@pytest.mark.parametrize("world_size", [2, 7])
def test_ranks_share_each_epoch_without_overlap(world_size):
    batch_size = 11 * world_size
    modules = [pretend(r, world_size, batch_size=batch_size) for r in range(world_size)]
    one = DigitsData(batch_size=batch_size).train_dataloader()
    trains = [list(module.train_dataloader()) for module in modules]
    assert {len(batches) for batches in trains} == {1257 // batch_size}
    for step, index in enumerate(one.batch_indices(5)):
        images = torch.cat([batches[step][0] for batches in trains])
        assert torch.equal(images, one.batch(index, 5)[0])
    for name, size in (("val", 180), ("test", 360)):
        loaders = [getattr(module, f"{name}_dataloader")() for module in modules]
        seen = torch.cat([i for loader in loaders for i in loader.batch_indices()])
        assert torch.equal(seen.sort().values, torch.arange(size))
        assert len({len(loader) for loader in loaders}) == 1


def test_a_batch_that_the_processes_cannot_share_is_refused():
    with pytest.raises(ValueError, match=r"batch_size=128 .* all 3 processes .*: 126 and 129"):
        pretend(1, 3, batch_size=128).setup("fit")

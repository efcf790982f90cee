"""Metrics of unequal parts of a set in two processes are those of the whole set."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cvattn.tasks.average_precision import MeanAveragePrecision
from cvattn.tasks.macro_accuracy import MacroAccuracy

GENERATOR = torch.Generator().manual_seed(2)
LOGITS = torch.randn(23, 3, generator=GENERATOR)
SEVERAL = (torch.rand(23, 3, generator=GENERATOR) < 0.3).float()
CLASSES = torch.cat([torch.zeros(15), torch.ones(5), torch.full((3,), 2.0)]).long()
PARTS = (slice(0, 17), slice(17, 23))  # the second has no image of the first class


def judged(parts: list[slice]) -> list[float]:
    precision, accuracy = MeanAveragePrecision(), MacroAccuracy(3)
    for part in parts:
        precision.update(LOGITS[part], SEVERAL[part])
        accuracy.update(LOGITS[part], CLASSES[part])
    return [precision.compute().item(), accuracy.compute().item()]


def process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(judged([PARTS[rank]]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes(tmp_path):
    mp.spawn(process, args=(str(tmp_path),), nprocs=2)
    want = judged(list(PARTS))
    assert want != pytest.approx(judged([PARTS[0]]), abs=1e-3)
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(want, abs=1e-6)

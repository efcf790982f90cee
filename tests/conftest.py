"""What every test gets: a seed, one thread a worker, and the way to CIFAR-10 where there is one."""

import os
from pathlib import Path

import pytest
import torch

SEED = 20261


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # an xdist worker: the cores are taken by its siblings
        torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A bare pytest leaves out what takes minutes; any ``-m`` decides for itself."""
    if config.option.markexpr:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.fixture(autouse=True)
def seed() -> int:
    """Each test starts from the same numbers, whichever worker runs it and in whatever order."""
    torch.manual_seed(SEED)
    return SEED


@pytest.fixture(scope="session")
def cifar10_root() -> Path:
    """Where CIFAR-10 is, from CVATTN_DATA; the test is skipped where it is not."""
    root = os.environ.get("CVATTN_DATA")
    if not root:
        pytest.skip("CVATTN_DATA is not set: no CIFAR-10 to test with")
    if not Path(root).is_dir():
        pytest.skip(f"CVATTN_DATA={root} is not a folder")
    return Path(root).resolve()

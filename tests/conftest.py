"""What every test gets: a seed, one thread a worker, and the way to CIFAR-10 where there is one.

Three variables stand for another machine (``.ci/machines`` sets them): ``CVATTN_TEST_THREADS`` is
the number of torch's threads in each worker, ``CVATTN_TEST_BFLOAT16`` whether its processor
multiplies bfloat16 (``native`` or ``emulated``), ``CVATTN_TEST_SEED`` draws other numbers.
"""

import os
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cvattn.core.attention import processor

SEED = int(os.environ.get("CVATTN_TEST_SEED", "20261"))
BFLOAT16 = {"native": True, "emulated": False}


def pytest_configure(config: pytest.Config) -> None:
    threads = os.environ.get("CVATTN_TEST_THREADS")
    if threads:
        torch.set_num_threads(int(threads))
    elif hasattr(config, "workerinput"):  # an xdist worker: the cores are taken by its siblings
        torch.set_num_threads(1)
    declared = os.environ.get("CVATTN_TEST_BFLOAT16")
    if declared:
        assert callable(processor.has_bfloat16)  # the one question that the library asks
        processor.has_bfloat16 = lambda: BFLOAT16[declared]


def _thin(items: list[pytest.Item]) -> None:
    """Of each function marked ``sweep(quick)`` all cases but ``quick`` are slow ones.

    Which ones, the function's name draws: cases at equal steps may all be of one value of a
    parameter. A case that is asked for by its own name is alone, and there.
    """
    sweeps = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sweep"):
            sweeps[item.nodeid.partition("[")[0]].append(item)
    for name, cases in sweeps.items():
        (quick,) = cases[0].get_closest_marker("sweep").args
        rest = max(0, len(cases) - quick)
        for item in random.Random(name).sample(cases, rest):
            item.add_marker("slow")
            item.add_marker("thinned")


@pytest.hookimpl(tryfirst=True)  # before pytest reads what -m says of marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A bare pytest leaves out what takes minutes; any ``-m`` decides for itself."""
    if not config.option.keyword:  # -k asks for a case
        _thin(items)
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


@pytest.fixture
def float64() -> Iterator[None]:
    """New tensors and modules are float64: for tests of anything but lower precision itself."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def cifar10_root() -> Path:
    """Where CIFAR-10 is, from CVATTN_DATA; the test is skipped where it is not."""
    root = os.environ.get("CVATTN_DATA")
    if not root:
        pytest.skip("CVATTN_DATA is not set: no CIFAR-10 to test with")
    if not Path(root).is_dir():
        pytest.skip(f"CVATTN_DATA={root} is not a folder")
    return Path(root).resolve()

"""Free memory as Linux tells it, from trees of files that the test writes."""

import pytest
import torch

from cvattn.core import memory
from cvattn.core.memory import available_bytes, check_fits, shapes_alone

CPU = torch.device("cpu")
GIB = 2**30
V1, V2 = "sys/fs/cgroup/memory/", "sys/fs/cgroup/"
MACHINE = {"proc/meminfo": "MemTotal: 16777216 kB\nMemAvailable:    8388608 kB\nSwapFree: 7 kB\n"}


def v1(folder, limit, usage, files=0):
    stat = f"cache 5\ntotal_inactive_file {files}\ntotal_active_file {files}\nactive_file 999\n"
    return {
        f"{V1}{folder}memory.limit_in_bytes": f"{limit}\n",
        f"{V1}{folder}memory.usage_in_bytes": f"{usage}\n",
        f"{V1}{folder}memory.stat": stat,
    }


def v2(folder, limit, usage, files=0):
    stat = f"anon 5\nactive_file {files}\ninactive_file {files}\n"
    return {
        f"{V2}{folder}memory.max": f"{limit}\n",
        f"{V2}{folder}memory.current": f"{usage}\n",
        f"{V2}{folder}memory.stat": stat,
    }


OF_V1 = {"proc/self/cgroup": "5:cpu,cpuacct:/x\n4:pids,memory:/jobs/17\n0::/\n"}
OF_V2 = {"proc/self/cgroup": "0::/jobs/a:b\n"}
UNLIMITED = 9223372036854771712  # what version 1 says where nothing was set
TREES = {
    "the machine alone": (MACHINE, 8 * GIB),
    "v1 without a limit": (MACHINE | OF_V1 | v1("jobs/17/", UNLIMITED, GIB), 8 * GIB),
    "v1": (MACHINE | OF_V1 | v1("jobs/17/", 3 * GIB, GIB), 2 * GIB),
    "v1, cached files": (MACHINE | OF_V1 | v1("jobs/17/", 3 * GIB, GIB, 1000), 2 * GIB + 2000),
    "v1, the group above": (
        MACHINE | OF_V1 | v1("jobs/17/", UNLIMITED, GIB) | v1("jobs/", 4 * GIB, 3 * GIB),
        GIB,
    ),
    "v1 in a container, with the host's path": (MACHINE | OF_V1 | v1("", 3 * GIB, GIB), 2 * GIB),
    "v2 without a limit": (MACHINE | OF_V2 | v2("jobs/a:b/", "max", GIB), 8 * GIB),
    "v2": (MACHINE | OF_V2 | v2("jobs/a:b/", 5 * GIB, GIB, 500), 4 * GIB + 1000),
    "v2, the tighter of two": (
        MACHINE | OF_V2 | v2("jobs/a:b/", 7 * GIB, GIB) | v2("jobs/", 6 * GIB, GIB),
        5 * GIB,
    ),
    "the machine has less than the group": (MACHINE | OF_V2 | v2("", 99 * GIB, 0), 8 * GIB),
    "used beyond the limit": (MACHINE | OF_V2 | v2("", GIB, 2 * GIB), 0),
    "a group and no machine": (OF_V2 | v2("jobs/a:b/", 5 * GIB, GIB), 4 * GIB),
    "not Linux": ({}, None),
}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    def put(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(memory, "_ROOT", tmp_path)

    return put


@pytest.mark.parametrize(("files", "want"), TREES.values(), ids=TREES.keys())
def test_available(tree, files, want):
    tree(files)
    assert available_bytes(CPU) == want


def test_available_here():
    free = available_bytes(CPU)
    assert free is None or 2**20 < free < 2**50


def test_devices_of_which_nothing_is_known(monkeypatch):
    assert available_bytes(torch.device("meta")) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert available_bytes(torch.device("cuda")) is None
    check_fits(2**60, torch.device("cuda"), "A score matrix", "Use less.")


def test_cuda_counts_what_torch_holds_unused(monkeypatch):
    answers = {"is_available": True, "mem_get_info": (700, 10_000)}
    answers |= {"memory_reserved": 90, "memory_allocated": 50}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *device, answer=answer: answer)
    assert available_bytes(torch.device("cuda", 0)) == 740


def test_the_guard(tree):
    tree(MACHINE)
    check_fits(8 * GIB, CPU, "The scores", "Use less.")
    with pytest.raises(MemoryError) as caught:
        check_fits(20 * GIB + 1, CPU, "The scores of 7 x 11 tokens", "Use need_weights=False.")
    assert str(caught.value) == (
        "The scores of 7 x 11 tokens: 20.00 GiB are needed on cpu, 8.00 GiB are available. "
        "Use need_weights=False."
    )
    with shapes_alone():
        check_fits(2**60, CPU, "The scores", "Use less.")
    with pytest.raises(MemoryError):
        check_fits(2**60, CPU, "The scores", "Use less.")
    with pytest.raises(ZeroDivisionError), shapes_alone():
        _ = 1 // 0
    with pytest.raises(MemoryError):
        check_fits(2**60, CPU, "The scores", "Use less.")

"""What looking costs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MEMORY = """
import torch
from cvattn import SelfAttention2d, capture_attention

torch.set_num_threads(1)

def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024

def look(size, rows):
    with torch.no_grad(), capture_attention(block, rows=rows) as maps:
        block(torch.randn(1, 64, size, size))

block = SelfAttention2d(64, gamma_init=0.7)
look(8, [3])
with torch.no_grad():
    block(torch.randn(1, 64, 100, 100))
before = peak()
look(100, [5050])
one = peak()
look(100, None)
print(one - before, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_one_row_of_a_large_map_costs_next_to_no_memory():
    """All 10,000 rows, a control, are 381 MiB."""
    run = [sys.executable, "-c", MEMORY]
    # Freed blocks go back at once: else glibc keeps some, more or less of them by chance.
    exact = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False, env=exact)
    assert done.returncode == 0, done.stderr
    one, control = map(float, done.stdout.split())
    assert control > 381, "the measure does not see the weights"
    assert one < 5

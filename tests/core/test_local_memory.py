"""Peaks of local attention, forward and backward, in fresh processes: linear in the positions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CLEAR = Path("/proc/self/clear_refs")
CAN_MEASURE = sys.platform == "linux" and os.access(CLEAR, os.W_OK)
CALLS = {
    "window": "window_attention(q, k, v, window=(8, 8), shift=(4, 4))",
    "axial": "window_attention(q, k, v, window=(1, q.shape[3]))",
    "neighborhood": "neighborhood_attention(q, k, v, window=(7, 7))",
    "neighborhood, key mask": "neighborhood_attention(q, k, v, window=(7, 7), key_mask=mask)",
    "criss-cross": "criss_cross_attention(q, k, v)",
    "criss-cross, key mask": "criss_cross_attention(q, k, v, key_mask=mask)",
}
PROGRAM = """
import ctypes, gc, sys, torch
from pathlib import Path
from cvattn.core.local import criss_cross_attention, neighborhood_attention, window_attention

def field(name):
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024

def one_pass(maps):
    q, k, v = maps
    mask = torch.ones(1, *q.shape[2:4], dtype=torch.bool)
    mask[0, ::3] = False
    eval(sys.argv[1]).sum().backward()

def make_maps(side):
    return [torch.full((1, 2, side, side, width), 0.25, requires_grad=True) for width in (8, 8, 16)]

torch.set_num_threads(1)
one_pass(make_maps(48))
maps = make_maps(int(sys.argv[2]))
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
Path("/proc/self/clear_refs").write_text("5")
before = field("VmRSS")
one_pass(maps)
print(field("VmHWM") - before)
"""


def peak(call, side):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, call, str(side)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        # Freed blocks go back at once: else glibc keeps some, more or less of them by chance.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not CAN_MEASURE, reason="peaks are read from Linux's /proc")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_peaks_are_linear_in_the_positions(call):
    """N = 128 x 128 and 256 x 256; a peak grows by at most 4 ** 1.1."""
    small, large = peak(call, 128), peak(call, 256)
    assert large > 16 * 256 * 256 * 4  # an output of this size was made
    assert large <= small * 4**1.1, f"{small / 2**20:.0f} MiB, then {large / 2**20:.0f} MiB"

"""Run in a process of its own: builds sys.argv[1], prints the peak bytes of one pass.

Arguments: module, dtype, sizes of the small input and of the input, "forward" or "training",
whether the input needs a gradient. The pass is made once on the small input first, so that the
libraries are there.
"""

import ctypes
import gc
import sys
from pathlib import Path

import torch

import cvattn

module_text, dtype_text, small, sizes, mode, wants = sys.argv[1:]
STATUS = Path("/proc/self/status")


def field(name):
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def one_pass(module, x):
    if mode == "training":
        output = module.train()(x)
        output.sum().backward()
    else:
        with torch.no_grad():
            output = module.eval()(x)
    return output


torch.set_num_threads(2)
dtype = getattr(torch, dtype_text)
module = eval(module_text, vars(cvattn)).to(dtype)
first, x = (
    torch.zeros([int(n) for n in text.split(",")], dtype=dtype).requires_grad_(wants == "True")
    for text in (small, sizes)
)
with torch.no_grad():
    x.add_(0.25)  # zeros that were never written take no memory
one_pass(module, first)
module.zero_grad()
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = field("VmRSS")
kept = one_pass(module, x)
print(field("VmHWM") - before)

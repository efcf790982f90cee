"""Peak bytes of one pass of a module in a process of its own.

The pass is made once on a small input first, so that the libraries are there. The processes come
from a fork server that has imported torch.
"""

import ctypes
import gc
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

import cvattn

STATUS = Path("/proc/self/status")
LIBC = ctypes.CDLL("libc.so.6")
M_MMAP_THRESHOLD = -3


def measured_peak(module, dtype, small, sizes, mode, wants):
    """Build ``module``, return what a pass on ``sizes`` adds at most to a process.

    Args:
        module: a call of a class of cvattn, as text.
        small, sizes: of the first input and of the one that is measured, "1,3,32,32".
        mode: "forward" or "training".
        wants: whether the input needs a gradient.
    """
    server = multiprocessing.get_context("forkserver")
    # Not cvattn: the server is also that of tests/mutation, which bring a cvattn of their own.
    server.set_forkserver_preload(["torch"])
    with ProcessPoolExecutor(1, mp_context=server) as pool:
        return pool.submit(_measure, module, dtype, small, sizes, mode, wants).result(120)


def _measure(module_text, dtype_text, small, sizes, mode, wants):
    # Freed blocks go back at once: else glibc keeps some, more or less of them by chance. Not by
    # an environment variable: whoever used the fork server first has decided on its environment.
    assert LIBC.mallopt(M_MMAP_THRESHOLD, 65536) == 1
    torch.set_num_threads(2)
    dtype = getattr(torch, dtype_text)
    module = eval(module_text, vars(cvattn)).to(dtype)
    first, x = (
        torch.zeros([int(n) for n in text.split(",")], dtype=dtype).requires_grad_(wants)
        for text in (small, sizes)
    )
    with torch.no_grad():
        x.add_(0.25)  # zeros that were never written take no memory
    _one_pass(module, first, mode)
    module.zero_grad()
    gc.collect()
    LIBC.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _field("VmRSS")
    kept = _one_pass(module, x, mode)
    peak = _field("VmHWM") - before
    del kept
    return peak


def _field(name):
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _one_pass(module, x, mode):
    if mode == "training":
        output = module.train()(x)
        output.sum().backward()
    else:
        with torch.no_grad():
            output = module.eval()(x)
    return output

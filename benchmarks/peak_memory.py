"""Peak memory of one step of one method, in a process that does nothing else.

    python benchmarks/peak_memory.py CASE METHOD

Prints one line of JSON. Linux only: the kernel itself keeps the peak (VmHWM), so nothing is missed
between two looks, whoever allocates.
"""

import argparse
import ctypes
import gc
import json
from collections.abc import Callable
from pathlib import Path

import torch
from cases import Case, find_case
from methods import build_method, make_data, step

M_MMAP_THRESHOLD = -3  # of malloc.h


def measure_peak(case: Case, name: str) -> dict:
    """MiB above the resident memory just before the step, and the process's own peak."""
    return_blocks()
    method = build_method(case, name)
    data = make_data(case, method.layout)
    # Kernels, thread pools and their buffers are loaded by a step on a few positions.
    step(case, method, make_data(case, method.layout, tiny=True))
    return peak_of(lambda: step(case, method, data))


def peak_of(run: Callable[[], object]) -> dict:
    """The same of one call, in a process whose kernels are loaded; see :func:`return_blocks`."""
    torch.randn(256, 256) @ torch.randn(256, 256)
    _release()
    before = _status("VmRSS")
    reset = _reset_peak()
    floor = before if reset else _status("VmHWM")
    run()
    peak = _status("VmHWM")
    note = "" if reset or peak > floor else "peak lies below that of the start of the process"
    return {"peak_mib": peak - before, "total_mib": peak, "note": note}


def return_blocks() -> None:
    """Have the allocator return every larger block at once.

    By default its threshold moves with what was freed before, and small peaks then differ by half
    from run to run.
    """
    _libc("mallopt", M_MMAP_THRESHOLD, 128 * 1024)


def _release() -> None:
    """Give back what the warm-up left free in the heap: the step would use it unseen."""
    gc.collect()
    _libc("malloc_trim", 0)


def _libc(function: str, *numbers: int) -> None:
    """Call the C library's allocator; another library than glibc goes without."""
    try:
        getattr(ctypes.CDLL("libc.so.6"), function)(*numbers)
    except (OSError, AttributeError):
        return


def _status(field: str) -> float:
    """A field of this process's status in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}: peak memory is measured on Linux only")


def _reset_peak() -> bool:
    """Set VmHWM back to the present; False where that is not permitted."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case")
    parser.add_argument("method")
    args = parser.parse_args()
    print(json.dumps(measure_peak(find_case(args.case), args.method)))


if __name__ == "__main__":
    main()

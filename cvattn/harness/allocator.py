"""Memory that training asks for again and again."""

import ctypes
import platform

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed instead of handing it back to the system.

    A step on a CPU frees its activations and asks for as much again in the next. glibc returns
    each one above 32 MB to the system, which has to find and clear its pages anew: about a tenth
    of a training step of the sagan network. The process stays as large as its largest step.

    Returns:
        Whether it does now; only glibc (most of Linux) knows these settings.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))  # -1: never trim

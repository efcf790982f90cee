"""The processor: its model name, its instructions, how many of its cores this process may use."""

import functools
import os
import platform
from pathlib import Path

_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


def processor_name() -> str:
    """The model as the processor itself gives it, without names of hosts or people."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def bf16_instructions() -> str:
    """Names of its bfloat16 instructions, "none" if it has none."""
    return " ".join(sorted(_BF16_FLAGS & set(_cpuinfo().get("flags", "").split()))) or "none"


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo, or nothing where there is no such file."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text().split("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in first)
    return {key.strip(): value.strip() for key, _, value in pairs}

import platform
import subprocess
import sys

import pytest

from cvattn.harness import allocator

# Ten steps that each ask for 80 MB in two parts and free them: new pages are counted as faults.
STEPS = """
import resource, runpy, torch
if {keep}:
    assert runpy.run_path({module!r})["keep_freed_memory"]()
def step():
    parts = [torch.ones(10_000_019) for _ in range(2)]
for _ in range(20):  # until what is kept suffices
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_serves_the_next_step():
    kept, returned = (
        int(
            subprocess.run(
                [sys.executable, "-c", STEPS.format(keep=keep, module=allocator.__file__)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for keep in (True, False)
    )
    assert returned > 100_000  # pages of 4 KB; else there would be nothing to gain
    assert kept < returned / 10

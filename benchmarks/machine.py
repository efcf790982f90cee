"""What it ran on: the processor by its model name, the memory, the version of the code."""

import datetime
import hashlib
import importlib.metadata
import os
import re
import subprocess
from pathlib import Path

from cases import Case

from cvattn.system.machine import bf16_instructions, processor_name, usable_cores

ROOT = Path(__file__).resolve().parents[1]


def facts() -> dict[str, str]:
    """The columns that are equal for every row of a run, without names of hosts or people."""
    return {
        "torch": importlib.metadata.version("torch"),
        "commit": _commit(),
        "cpu": processor_name(),
        "bf16_instructions": bf16_instructions(),
        "date": datetime.date.today().isoformat(),
    }


def slug(cpu: str) -> str:
    """A short name for files: the processor and how many of its cores we may use."""
    name = re.sub(r"\((r|tm|c)\)", " ", cpu.lower())
    name = re.sub(r"\b(cpu|processor|with|radeon|graphics)\b", " ", name)
    words = re.sub(r"[^a-z0-9.]+", "-", name).strip("-")
    return f"{words}-{usable_cores()}cores"


def too_large(case: Case, method: str) -> str:
    """Why a method is not run at that size, or "": it would take more than half of the memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = case.stored_bytes(method)
    if needed <= total / 2:
        return ""
    return f"not run: needs about {needed / 2**30:.0f} GiB of {total / 2**30:.0f}"


def _commit() -> str:
    """The last commit that touched what is measured; if changed since, + and a sum of the code."""
    code = ["--", "cvattn", "benchmarks/*.py"]
    try:
        last = _git("log", "-1", "--format=%h", *code) or "none"
        changed = _git("status", "--porcelain", *code)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    if not changed:
        return last
    files = sorted([*ROOT.glob("cvattn/**/*.py"), *ROOT.glob("benchmarks/*.py")])
    total = hashlib.sha256(b"".join(file.read_bytes() for file in files))
    return f"{last}+{total.hexdigest()[:7]}"


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()

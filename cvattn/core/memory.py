"""How much memory is free, and a clear error before an allocation that cannot fit."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch

# Where Linux tells; a test puts another tree here.
_ROOT = Path("/")
_SHAPES_ALONE = ContextVar("_SHAPES_ALONE", default=False)


def available_bytes(device: torch.device) -> int | None:
    """Bytes that can be allocated on ``device`` now, without swap; None where that is unknown.

    CPU: what Linux calls available, or what the tightest control group (v1 or v2, as containers
    and batch systems set them) leaves, if that is less; files in its cache count as free, as they
    do in the machine's own figure. CUDA: what the driver has free, and what torch holds unused.

    It reads a handful of small files: call it before large allocations, not for every one.
    """
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return None
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused
    if device.type != "cpu":
        return None
    known = [size for size in (_machine(), *_control_groups()) if size is not None]
    return max(0, min(known)) if known else None


def check_fits(size: int, device: torch.device, what: str, advice: str) -> None:
    """Raise MemoryError, saying what to do instead, if ``size`` bytes are not available.

    Nothing happens where the free memory is unknown, or inside :func:`shapes_alone`.

    Args:
        size: bytes that are about to be allocated on ``device``.
        what: who needs them, as the start of a sentence ("The scores of 65536 x 65536 tokens").
        advice: what to do, as a sentence of its own.
    """
    if are_shapes_alone():
        return
    available = available_bytes(device)
    if available is not None and size > available:
        raise MemoryError(
            f"{what}: {size / 2**30:.2f} GiB are needed on {device}, {available / 2**30:.2f} GiB "
            f"are available. {advice}"
        )


@contextmanager
def shapes_alone() -> Iterator[None]:
    """For shapes that are only traced: nothing is allocated, and numbers are taken to be finite."""
    token = _SHAPES_ALONE.set(True)
    try:
        yield
    finally:
        _SHAPES_ALONE.reset(token)


def are_shapes_alone() -> bool:
    """Whether it is inside of :func:`shapes_alone`."""
    return _SHAPES_ALONE.get()


def _machine() -> int | None:
    found = _fields(_ROOT / "proc/meminfo").get("MemAvailable:")
    return None if found is None else found * 1024


def _control_groups() -> Iterator[int]:
    """What is left under the limit of this process's group and of each group above it."""
    for line in _text(_ROOT / "proc/self/cgroup").splitlines():
        number, controllers, group = line.split(":", 2)
        if number == "0":  # version 2
            mount, limit, usage, prefix = "sys/fs/cgroup", "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            mount, limit, usage, prefix = (
                "sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_",
            )
        else:
            continue
        # Inside a container the path may be the host's: then the mount itself is the group.
        below = Path(group.strip("/"))
        for folder in (_ROOT / mount / part for part in (below, *below.parents)):
            most, used = _text(folder / limit).strip(), _text(folder / usage).strip()
            if most.isdecimal() and used.isdecimal():  # "max" is no limit
                stat = _fields(folder / "memory.stat")
                files = sum(stat.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
                yield int(most) - int(used) + files


def _fields(path: Path) -> dict[str, int]:
    """``name number ...`` in each line -> {name: number}."""
    rows = (line.split() for line in _text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # not Linux, not this version of control groups, or not ours to read
        return ""

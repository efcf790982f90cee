"""What a check of the GPU battery is: what it is told, what it gives, how near is near.

The rule of accuracy is the tests' (``tests/oracles.py``): against float64 on the CPU, at most twice
the error of the reference route in the same dtype on the same device, or a few eps of the largest
value. So no number here is what one processor happened to meet.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

FEW = 4  # eps of the largest value: what a last rounding or two may cost anyone
# Of float64, in which the order of a sum is not the CPU's: midway to the eps of float32.
ROUNDING = (torch.finfo(torch.float64).eps * torch.finfo(torch.float32).eps) ** 0.5
MOST_RUNS = 8  # of the reference route
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
MIB = 2**20


class Place(NamedTuple):
    """Where a check runs, and whether sizes are small: to see that all of it works, in a minute."""

    device: torch.device
    small: bool

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        if self.on_cuda:
            torch.cuda.synchronize(self.device)


@dataclass
class Finding:
    """One row. ``ok`` is None where there is nothing to be met, and the row is information.

    Attributes:
        case: what was computed.
        method: whose, where several stand side by side.
        route: of ours, as the plan or a caller chose it.
        kernel: of torch's, as its operators say.
        error, bound: as shares of the largest value.
        milliseconds: of a step, the median.
    """

    case: str
    ok: bool | None = None
    dtype: str = ""
    method: str = ""
    route: str = ""
    kernel: str = ""
    error: float | None = None
    bound: float | None = None
    milliseconds: float | None = None
    peak_mib: float | None = None
    note: str = ""


class Check(NamedTuple):
    """Something to be found out, which may fail without the others."""

    name: str
    run: Callable[[Place], Iterable[Finding]]


class Yardstick:
    """The error of the reference route, in the same dtype on the same device, against float64.

    Where there are few numbers it may be small by accident. What does not meet it is held to the
    largest of several runs, each on neighbours of what was given, as in the tests.

    Args:
        run: k -> (the reference route's, the same in float64): each tensors, or lists of them that
            are one whole: "a few eps" is then of the largest value of all, since some, as the
            gradient of a key's bias, are 0 but for rounding. 0 is what is judged, others are
            neighbours of it.
        dtype: that is judged.
    """

    def __init__(
        self, run: Callable[[int], tuple[Sequence[Any], Sequence[Any]]], dtype: torch.dtype
    ) -> None:
        self.run = run
        self.few = ROUNDING if dtype == torch.float64 else FEW * torch.finfo(dtype).eps
        own, self.exact = run(0)
        self.own = own
        largest = [_largest(x) for x in self.exact]
        # What is 0 but for rounding, as the gradient of a lone key, is measured by the others.
        all_of_it = max(largest, default=0.0) or 1.0
        self.sizes = [x if x > ROUNDING * all_of_it else all_of_it for x in largest]
        self.errors = [_apart(x, y) for x, y in zip(own, self.exact, strict=True)]
        self.runs = 1

    def judge(self, actual: Sequence[Any]) -> dict[str, Any]:
        """``ok``, ``error`` and ``bound`` of the part that comes nearest to its bound."""
        verdict = self._judge(actual)
        while not verdict["ok"] and math.isfinite(verdict["error"]) and self.runs < MOST_RUNS:
            own, exact = self.run(self.runs)
            more = [_apart(x, y) for x, y in zip(own, exact, strict=True)]
            self.errors = [max(pair) for pair in zip(self.errors, more, strict=True)]
            self.runs += 1
            verdict = self._judge(actual)
        return verdict

    def _judge(self, actual: Sequence[Any]) -> dict[str, Any]:
        worst = {"ok": True, "error": 0.0, "bound": self.few}
        parts = zip(actual, self.exact, self.errors, self.sizes, strict=True)
        for got, want, own, size in parts:
            error, bound = _apart(got, want) / size, 2 * own / size + self.few
            # Not "error > bound": a NaN is no agreement either.
            met = error <= bound
            if not met:
                return {"ok": False, "error": error, "bound": bound}
            if error / bound > worst["error"] / worst["bound"]:
                worst = {"ok": True, "error": error, "bound": bound}
        return worst


def neighbour(x: Tensor, k: int, dtype: torch.dtype) -> Tensor:
    """Each number moved by up to one eps of the dtype, and rounded to it; as it is for k = 0."""
    if k == 0:
        return x
    steps = torch.randint(-1, 2, x.shape, generator=torch.Generator().manual_seed(k))
    return (x * (1 + steps * torch.finfo(dtype).eps)).to(dtype).to(x.dtype)


def _parts(x: Any) -> Sequence[Tensor]:
    return [x] if isinstance(x, Tensor) else x


def _apart(actual: Any, exact: Any) -> float:
    pairs = zip(_parts(actual), _parts(exact), strict=True)
    # max() of floats would lose a NaN that does not come first.
    return (
        torch.tensor([0.0, *(_off(got, want) for got, want in pairs)], dtype=torch.float64)
        .max()
        .item()
    )


def _off(got: Tensor, want: Tensor) -> float:
    if got.shape != want.shape:
        raise ValueError(f"the result has shape {tuple(got.shape)}, not {tuple(want.shape)}")
    if got.numel() == 0:
        return 0.0
    return (got.detach().cpu().double() - want.detach().cpu()).abs().max().item()


def _largest(x: Any) -> float:
    sizes = [part.detach().abs().max().item() for part in _parts(x) if part.numel()]
    return max(sizes, default=0.0)


class Kernels(TorchDispatchMode):
    """Which of torch's attention kernels ran inside, by its operators.

    Attributes:
        seen: such as {"flash", "efficient", "cudnn"}; its own name for the plain products, which
            are operators of their own, is not among them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().partition("::")[2].partition(".")[0]
        start = "_scaled_dot_product_"
        if name.startswith(start) and not name.endswith("_backward"):
            self.seen.add(name.removeprefix(start).replace("_attention", ""))
        return function(*args, **(kwargs or {}))

    def of(self, routes: set[str]) -> str:
        """For a row: torch's kernels; "math" where such a route ran none of them."""
        if routes & {"fused", "padded"} and not self.seen:
            return "math"
        return " ".join(sorted(self.seen))


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass
class Timer:
    """Milliseconds and peak of a step on the device.

    Attributes:
        seconds: how long to go on, for at least ``fewest`` steps.
    """

    place: Place
    seconds: float = 0.15
    fewest: int = 3
    most: int = 30
    times: list[float] = field(default_factory=list)

    def measure(self, step: Callable[[], object]) -> dict[str, Any]:
        """Of a step that has run once, so that its kernels are loaded.

        The peak is what the step holds beyond what was there, by torch's allocator; None on a CPU,
        which ``peak_memory.py`` measures.
        """
        step()
        peak = None
        if self.place.on_cuda:
            self.place.synchronize()
            torch.cuda.reset_peak_memory_stats(self.place.device)
            before = torch.cuda.memory_allocated(self.place.device)
            step()
            self.place.synchronize()
            peak = (torch.cuda.max_memory_allocated(self.place.device) - before) / MIB
        start = time.perf_counter()
        while len(self.times) < self.fewest or (
            len(self.times) < self.most and time.perf_counter() - start < self.seconds
        ):
            begin = time.perf_counter()
            step()
            self.place.synchronize()
            self.times.append((time.perf_counter() - begin) * 1e3)
        return {"milliseconds": statistics.median(self.times), "peak_mib": peak}

"""Which kernel runs: the plan promises a fused one for these calls, torch decides by itself.

A call that the plan calls ``fused`` or ``padded`` and that torch computes by plain products stores
all scores, and nothing says so. What torch picks depends on the GPU (cuDNN's comes first on
Hopper), so the row names it.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from gpu_checks import Check, Finding, Kernels, Place, name_of
from gpu_inputs import BLOCKS, TOKENS, make_block, make_call, make_input, run_block

from cvattn.core import attention, record_routes, use_route

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CALLS: Mapping[str, dict[str, Any]] = {
    "equal widths": {"width": 64},
    "SAGAN, 64 channels": {"width": 8, "value_width": 64, "heads": 1},
    "SAGAN, 32 channels": {"width": 4, "value_width": 32, "heads": 1},
    "SAGAN, 512 channels": {"width": 64, "value_width": 512, "heads": 1},
    "256 wide": {"width": 256, "heads": 1},
    "264 wide": {"width": 264, "heads": 1},
    "512 wide": {"width": 512, "heads": 1},
    "odd widths": {"width": 5, "value_width": 11},
    "keys hidden": {"width": 64, "mask": "keys"},
    "pairs hidden": {"width": 64, "mask": "pairs"},
    "bias": {"width": 64, "bias": "heads"},
    "causal, square": {"width": 64, "key_length": 67, "is_causal": True},
    "causal, more keys": {"width": 64, "is_causal": True},
    "few keys": {"width": 32, "length": 9, "key_length": 9},
}


def checks(place: Place) -> list[Check]:
    calls = ["equal widths", "SAGAN, 32 channels", "bias"] if place.small else CALLS
    blocks = ["common"] if place.small else [*BLOCKS, *TOKENS]
    found = [Check(f"kernel: {name}", partial(_of_call, name)) for name in calls]
    found += [Check(f"kernel: {name}", partial(_of_block, name)) for name in blocks]
    return [*found, Check("kernel: by the profiler", _by_the_profiler)]


def _of_call(name: str, place: Place) -> Iterator[Finding]:
    call = make_call(**CALLS[name])
    for dtype in DTYPES:
        given = call.to(place.device, dtype)
        for way in ("forward", "backward", "dropout"):
            with record_routes() as record, Kernels() as kernels:
                if way == "backward":
                    given.run()
                else:
                    attention(*given.tokens, **given.terms, dropout_p=0.5 * (way == "dropout"))
            yield _row(f"kernel: {name}, {way}", dtype, record, kernels, place)


def _of_block(name: str, place: Place) -> Iterator[Finding]:
    """What a block's layouts and narrow heads come to, which calls alone do not show."""
    for dtype in DTYPES:
        block = make_block(name).to(place.device, dtype)
        x = make_input(name).to(place.device, dtype)
        with record_routes() as record, Kernels() as kernels:
            run_block(block, x)
        yield _row(f"kernel: block, {name}", dtype, record, kernels, place)


def _row(case: str, dtype: torch.dtype, record: Any, kernels: Kernels, place: Place) -> Finding:
    routes = {route.name for _, route in record}
    kernel = kernels.of(routes)
    return Finding(
        case,
        # Of a CPU the plan promises the same, of the fused route alone.
        ok=kernel != "math" if routes & {"fused", "padded"} else None,
        dtype=name_of(dtype),
        route=" ".join(sorted(routes)),
        kernel=kernel,
        note="; ".join(sorted({route.reason for _, route in record})),
    )


def _by_the_profiler(place: Place) -> Iterator[Finding]:
    """The kernels by their own names, longest first, of a large call forward and backward."""
    from torch.profiler import ProfilerActivity, profile

    size = 64 if place.small else 2048
    activity = ProfilerActivity.CUDA if place.on_cuda else ProfilerActivity.CPU
    for dtype in DTYPES[:2]:
        for route in ("fused", "padded", "tiled"):
            call = make_call(length=size, key_length=size, width=64).to(place.device, dtype)
            with use_route(route):
                call.run()
                with profile(activities=[activity]) as seen:
                    call.run()
                    place.synchronize()
            on_device = "self_device_time_total" if place.on_cuda else "self_cpu_time_total"
            longest = sorted(seen.key_averages(), key=lambda e: -getattr(e, on_device))[:4]
            yield Finding(
                "kernel: by the profiler",
                dtype=name_of(dtype),
                route=route,
                note="; ".join(each.key[:90] for each in longest),
            )

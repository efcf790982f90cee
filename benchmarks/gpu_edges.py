"""What GPU kernels are known to do wrong, or refuse, at the edges of the shapes they take."""

import copy
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import machine
import torch
from gpu_checks import Check, Finding, Kernels, Place, Yardstick, name_of, neighbour
from gpu_inputs import (
    LOWER,
    SEED,
    Call,
    draw,
    make_block,
    make_call,
    rounded,
    routes_for,
    run_block,
    yardstick_of,
)
from torch import Tensor

from cvattn import WindowAttention2d
from cvattn.core import attention, record_routes, use_route
from cvattn.core.attention import reference_attention
from cvattn.core.attention.plan import GRID_LIMIT


def checks(place: Place) -> list[Check]:
    dtypes = LOWER[:1] if place.small else LOWER
    found: list[tuple[str, Callable[[Place], Iterable[Finding]]]] = [
        ("rows that see nothing", partial(_rows_that_see_nothing, dtypes)),
        ("a bias alone is trained", partial(_bias_alone, dtypes)),
        ("more samples than a grid", partial(_large_batch, dtypes[:2])),
        ("more windows than a grid", _many_windows),
        ("nothing to compute", partial(_empty, dtypes)),
        ("rows at odd places", partial(_odd_places, dtypes)),
        ("a length out of range", _assertion),
    ]
    return [Check(name, run) for name, run in found]


def _compared(
    case: str, call: Call, place: Place, dtype: torch.dtype, *, zero_rows: Tensor | None = None
) -> Iterator[Finding]:
    """Each route against float64; rows that must be 0, if there are such, exactly."""
    given, yardstick = call.to(place.device, dtype), yardstick_of(call, place, dtype)
    for route in routes_for(given):
        with use_route(route), Kernels() as kernels:
            found = given.run()
        verdict = yardstick.judge(found)
        note = ""
        if zero_rows is not None and found[0].cpu()[:, :, zero_rows].any():
            verdict["ok"], note = False, "a row that sees nothing is not 0"
        yield Finding(
            case,
            dtype=name_of(dtype),
            route=route,
            kernel=kernels.of({route}),
            note=note,
            **verdict,
        )


def _rows_that_see_nothing(dtypes: Iterable[torch.dtype], place: Place) -> Iterator[Finding]:
    length, keys = 67, 131
    hidden = torch.zeros(length, dtype=torch.bool)
    hidden[[0, 13, 66]] = True
    for dtype in dtypes:
        mask = make_call(mask="pairs", dtype=dtype)
        mask.terms["attn_mask"][hidden] = False
        hidden_by_mask = ~mask.terms["attn_mask"].any(-1)
        bias = make_call(bias="heads", dtype=dtype)
        bias.terms["attn_bias"][:, :, hidden] = float("-inf")
        causal = make_call(length=keys, key_length=length, is_causal=True, dtype=dtype)
        first = torch.arange(keys) < keys - length
        for how, call, rows in (
            ("mask", mask, hidden_by_mask),
            ("bias", bias, hidden),
            ("causality", causal, first),
        ):
            yield from _compared(
                f"rows that see nothing: {how}", call, place, dtype, zero_rows=rows
            )


def _bias_alone(dtypes: Iterable[torch.dtype], place: Place) -> Iterator[Finding]:
    """Torch's CUDA kernels keep what a gradient needs only if query, key or value need one."""
    for dtype in dtypes:
        for kind in ("heads", "samples"):
            call = make_call(bias=kind, width=64, dtype=dtype)
            given = call.to(place.device, dtype)
            with record_routes() as record:
                found = _gradient_of_bias(given, attention)
            yield Finding(
                f"a bias alone is trained: {kind}",
                dtype=name_of(dtype),
                route=record[0][1].name,
                **yardstick_of(call, place, dtype, _gradient_of_bias).judge(found),
            )


def _gradient_of_bias(call: Call, function: Callable[..., Tensor]) -> list[Tensor]:
    bias = call.terms["attn_bias"].detach().requires_grad_()
    return [*torch.autograd.grad(function(*call.tokens, attn_bias=bias), bias, call.upstream)]


def _large_batch(dtypes: Iterable[torch.dtype], place: Place) -> Iterator[Finding]:
    for dtype in dtypes:
        size: dict[str, Any] = {"length": 3, "key_length": 5, "width": 8, "dtype": dtype}
        many = GRID_LIMIT + 5
        for case, call in (
            ("plain", make_call(batch=many, heads=1, **size)),
            ("keys hidden", make_call(batch=many, heads=1, mask="keys", **size)),
            ("causal", make_call(batch=many, heads=1, is_causal=True, **size)),
            ("many heads", make_call(batch=1, heads=many, **size)),
        ):
            given = call.to(place.device, dtype)
            with record_routes() as record, Kernels() as kernels:
                found = given.run()
            route = record[0][1].name
            yield Finding(
                f"more samples than a grid: {case}",
                dtype=name_of(dtype),
                route=route,
                kernel=kernels.of({route}),
                **yardstick_of(call, place, dtype).judge(found),
            )


def _many_windows(place: Place) -> Iterator[Finding]:
    """Windows of maps are samples of one call: a batch of 65 maps of 256x256 has 66,560 of 8x8."""
    batch, side = (3, 16) if place.small else (65, 256)
    dtype = torch.bfloat16
    torch.manual_seed(SEED)
    block = WindowAttention2d.unet(16, window=8, groups=4, head_dim=8)
    torch.nn.init.normal_(block.proj.weight, std=0.2)
    exact, exact_x = rounded(block, draw(1, 16, side, side), dtype)
    block = copy.deepcopy(exact).to(place.device, dtype)

    def run(k: int) -> Any:
        moved = neighbour(exact_x, k, dtype)
        with use_route("direct"), torch.no_grad():
            return [block(moved.to(place.device, dtype))] * 2, [exact(moved)] * 2

    x = exact_x.to(place.device, dtype).expand(batch, -1, -1, -1).clone().requires_grad_()
    output = block(x)
    (slope,) = torch.autograd.grad(output.float().square().sum(), x)
    verdict = Yardstick(run, dtype).judge([output[:1], output[-1:]])
    # Each map is the same: so is its gradient, but for what kernels do with one more sample.
    even = (slope[0] - slope[-1]).abs().max() <= 2**-5 * slope[0].abs().max()
    yield Finding(
        "more windows than a grid",
        dtype=name_of(dtype),
        note=f"{batch} maps of {side}x{side}",
        **(verdict | {"ok": verdict["ok"] and bool(even)}),
    )


def _empty(dtypes: Iterable[torch.dtype], place: Place) -> Iterator[Finding]:
    sizes = {"samples": {"batch": 0}, "queries": {"length": 0}, "keys": {"key_length": 0}}
    for dtype in dtypes:
        for what, size in sizes.items():
            for mask in ("", "pairs") if what == "keys" else ("",):
                call = make_call(width=8, **{"length": 7, "key_length": 11, **size})
                if mask:
                    call.terms["attn_mask"] = torch.ones(7, 0, dtype=torch.bool)
                given = call.to(place.device, dtype)
                with record_routes() as record:
                    found = given.run()
                exact = call.run(reference_attention)
                yield Finding(
                    f"nothing to compute: no {what}{', masked' if mask else ''}",
                    dtype=name_of(dtype),
                    route=record[0][1].name,
                    **Yardstick(lambda k, exact=exact: (exact, exact), dtype).judge(found),
                )
        block = make_block("common").to(place.device, dtype)
        output, *_ = run_block(block, torch.zeros(0, 32, 5, 7, device=place.device, dtype=dtype))
        yield Finding(
            "nothing to compute: a block", ok=output.shape == (0, 32, 5, 7), dtype=name_of(dtype)
        )


def _odd_places(dtypes: Iterable[torch.dtype], place: Place) -> Iterator[Finding]:
    """Views whose rows begin anywhere, as parts of a wider tensor do."""
    for dtype in dtypes:
        call = make_call(width=64, dtype=dtype)
        given = call.to(place.device, dtype)
        views = [torch.nn.functional.pad(x, (1, 0))[..., 1:] for x in given.tokens]
        wanted = [x.detach().requires_grad_() for x in views]
        with record_routes() as record, Kernels() as kernels:
            output = attention(*wanted)
        found = [output, *torch.autograd.grad(output, wanted, given.upstream)]
        route = record[0][1].name
        kernel = kernels.of({route})
        verdict = yardstick_of(call, place, dtype).judge(found)
        yield Finding(
            "rows at odd places",
            dtype=name_of(dtype),
            route=route,
            kernel=kernel,
            **(verdict | {"ok": verdict["ok"] and kernel != "math"}),
        )


_OUT_OF_RANGE = """
import torch
from cvattn.core.masks import length_mask
length_mask(torch.tensor([3, 9], device="{device}"), 5)
if "{device}" != "cpu":
    torch.cuda.synchronize()
"""


def _assertion(place: Place) -> Iterator[Finding]:
    """In a process of its own: an assertion on the device ends all that this process computes."""
    script = _OUT_OF_RANGE.format(device=place.device.type)
    # -c looks for packages in the folder where it starts.
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=machine.ROOT)
    yield Finding(
        "a length out of range",
        ok=done.returncode != 0 and "lengths must lie in 0..5" in done.stderr,
        note="" if done.returncode else "it was taken",
    )

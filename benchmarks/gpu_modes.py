"""What GPU kernels make of numbers that are hard, and of the modes that a training runs in."""

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from gpu_checks import Check, Finding, Kernels, Place, Yardstick, name_of, neighbour
from gpu_inputs import (
    BLOCKS,
    CALLS,
    HALVES,
    LOWER,
    SEED,
    TOKENS,
    Call,
    make_block,
    make_call,
    make_input,
    rounded,
    routes_for,
    run_block,
    yardstick_of,
)
from torch import Tensor

from cvattn.core import attention, record_routes, use_route


def checks(place: Place) -> list[Check]:
    dtypes = LOWER[:1] if place.small else LOWER
    forms = ["common", "criss-cross"] if place.small else [*BLOCKS, *TOKENS]
    found: list[tuple[str, Callable[[Place], Iterable[Finding]]]] = [
        ("scores beyond float16", _beyond_float16),
        ("a hidden NaN", partial(_nan, dtypes)),
        ("second derivative", _second_derivative),
        ("dropout", partial(_dropout, dtypes)),
        *((f"autocast: {name}", partial(_autocast, name)) for name in forms),
        *((f"deterministic: {name}", partial(_deterministic, name)) for name in forms),
    ]
    return [Check(name, run) for name, run in found]


def _beyond_float16(place: Place) -> Iterator[Finding]:
    """Finite numbers whose products are beyond 65504: the scores, and those of the backward."""
    for dtype in HALVES:
        call = make_call(width=64, dtype=dtype)
        query, key, value = call.tokens
        # Scores of thousands times 64 before the scale: the softmax is all but a maximum.
        large = Call((query * 300, key * 300, value * 30), call.terms, call.upstream)
        large = large.to("cpu", dtype).to("cpu", torch.float64)
        given = large.to(place.device, dtype)
        yardstick = yardstick_of(large, place, dtype, _output)
        for route in routes_for(given):
            with use_route(route), Kernels() as kernels:
                found = given.run()
            verdict = yardstick.judge(found[:1])
            finite = all(bool(x.isfinite().all()) for x in found)
            yield Finding(
                "scores beyond float16",
                dtype=name_of(dtype),
                route=route,
                kernel=kernels.of({route}),
                note="" if finite else "not finite",
                **(verdict | {"ok": verdict["ok"] and finite}),
            )


def _output(call: Call, function: Callable[..., Tensor]) -> list[Tensor]:
    return [function(*call.tokens, **call.terms)]


def _nan(dtypes: Iterable[torch.dtype], place: Place) -> Iterator[Finding]:
    """In a hidden key or value it reaches nothing; in one that is seen, all who see it."""
    for dtype in dtypes:
        for is_causal in (False, True):
            call = make_call(
                mask="" if is_causal else "keys", is_causal=is_causal, key_length=67, dtype=dtype
            )
            given = call.to(place.device, dtype)
            # The last key is hidden from all but the last row of a causal call.
            rows = slice(0, 66) if is_causal else slice(None)
            yardstick = yardstick_of(
                call, place, dtype, lambda *made, rows=rows: [_output(*made)[0][:, :, rows]]
            )
            for route in routes_for(given):
                key, value = given.tokens[1].clone(), given.tokens[2].clone()
                key[:, :, -1], value[:, :, -1] = float("nan"), float("inf")
                with use_route(route):
                    output = attention(given.tokens[0], key, value, **given.terms)
                verdict = yardstick.judge([output[:, :, rows]])
                seen = not is_causal or bool(output[:, :, 66].isnan().all())
                yield Finding(
                    f"a hidden NaN: {'causality' if is_causal else 'mask'}",
                    dtype=name_of(dtype),
                    route=route,
                    note="" if seen else "who sees it does not become NaN",
                    **(verdict | {"ok": verdict["ok"] and seen}),
                )


def _second_derivative(place: Place) -> Iterator[Finding]:
    """Of a gradient penalty, in float32, behind each kernel."""
    for name in ("plain", "bias", "causal, square"):
        call = make_call(**CALLS[name], dtype=torch.float32)
        given = call.to(place.device, torch.float32)
        yardstick = yardstick_of(call, place, torch.float32, _penalty)
        for route in routes_for(given):
            with use_route(route), Kernels() as kernels:
                found = _penalty(given, attention)
            yield Finding(
                f"second derivative: {name}",
                dtype="float32",
                route=route,
                kernel=kernels.of({route}),
                **yardstick.judge(found),
            )


def _penalty(call: Call, function: Callable[..., Tensor]) -> list[Tensor]:
    wanted = [x.detach().requires_grad_() for x in call.tokens]
    output = function(*wanted, **call.terms)
    slopes = torch.autograd.grad(output, wanted, call.upstream, create_graph=True)
    return list(torch.autograd.grad(sum(x.square().sum() for x in slopes), wanted))


def _dropout(dtypes: Iterable[torch.dtype], place: Place) -> Iterator[Finding]:
    """The output is linear in the values: the backward pass has dropped what the forward did."""
    for dtype in dtypes:
        call = make_call(dtype=dtype).to(place.device, dtype)
        for route in routes_for(call):
            if route in ("fused", "padded") and not place.on_cuda:
                continue  # torch's CPU kernel has none
            torch.manual_seed(SEED)
            value = call.tokens[2].detach().requires_grad_()
            with use_route(route), Kernels() as kernels:
                output = attention(*call.tokens[:2], value, dropout_p=0.25)
            (slope,) = torch.autograd.grad(output, value, call.upstream)
            forward = (output.detach().double() * call.upstream.double()).sum().item()
            backward = (slope.double() * value.detach().double()).sum().item()
            size = (output.detach().double() * call.upstream.double()).square().sum().sqrt().item()
            with use_route(route):
                kept = attention(*call.tokens)
            yield Finding(
                "dropout",
                # Sums of as many rounded numbers.
                ok=abs(forward - backward) <= 16 * torch.finfo(dtype).eps * size
                and not torch.allclose(output, kept),
                dtype=name_of(dtype),
                route=route,
                kernel=kernels.of({route}),
                error=abs(forward - backward) / size,
                bound=16 * torch.finfo(dtype).eps,
            )


def _autocast(name: str, place: Place) -> Iterator[Finding]:
    """float32 weights and images under autocast."""
    exact, exact_x = rounded(make_block(name), make_input(name), torch.float32)
    block = copy.deepcopy(exact).to(place.device, torch.float32)
    x = exact_x.to(place.device, torch.float32)
    for dtype in HALVES[:1] if place.small else HALVES:

        def run(k: int, dtype=dtype) -> Any:
            moved = neighbour(exact_x, k, dtype)
            with use_route("direct"), torch.autocast(place.device.type, dtype):
                own = run_block(block, moved.to(place.device, torch.float32))
            return own, run_block(exact, moved)

        with (
            torch.autocast(place.device.type, dtype),
            record_routes() as record,
            Kernels() as kernels,
        ):
            found = run_block(block, x)
        routes = {route.name for _, route in record}
        yield Finding(
            f"autocast: {name}",
            dtype=name_of(dtype),
            route=" ".join(sorted(routes)),
            kernel=kernels.of(routes),
            **Yardstick(run, dtype).judge(found),
        )


def _deterministic(name: str, place: Place) -> Iterator[Finding]:
    """Nothing in a forward or backward pass is refused, and twice the same is the same."""
    torch.use_deterministic_algorithms(True)
    try:
        for dtype in (torch.float32, torch.bfloat16)[: 1 if place.small else 2]:
            block = make_block(name).to(place.device, dtype)
            x = make_input(name).to(place.device, dtype)
            note, same = "", False
            try:
                with Kernels() as kernels:
                    one, two = run_block(block, x), run_block(block, x)
                pairs = zip([*one[:2], *one[2]], [*two[:2], *two[2]], strict=True)
                same = all(torch.equal(a, b) for a, b in pairs)
                note = "" if same else "twice the same is not the same"
            except RuntimeError as error:
                note = str(error).splitlines()[0][:300]
            yield Finding(
                f"deterministic: {name}",
                ok=same,
                dtype=name_of(dtype),
                kernel=" ".join(sorted(kernels.seen)),
                note=note,
            )
    finally:
        torch.use_deterministic_algorithms(False)

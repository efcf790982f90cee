"""Time and peak memory beside what people use, on maps from 16x16 to 256x256 and as many tokens.

Ours, the common block that stores all scores, ``F.scaled_dot_product_attention`` as it comes,
``nn.MultiheadAttention``, and, where they are installed, diffusers' and timm's own classes: with
equal weights, inputs and gradients, forward and backward. That they agree is checked, and that the
peak of ours grows with the number of positions; times are information.
"""

import math
from collections.abc import Iterator
from functools import partial

import torch
from cases import BOTH, DIFFUSERS, MHA, OURS, TIMM, TOKEN_SDPA, Case
from gpu_checks import MIB, Check, Finding, Kernels, Place, Timer
from gpu_inputs import make_call
from methods import TOLERANCE, Data, build_method, distance, make_data, step
from paired import fitted_exponent

from cvattn.core import record_routes, use_route
from cvattn.core.attention import criss_cross_tiles, tiles

SIDES, SMALL_SIDES = (16, 32, 64, 128, 256), (8, 12)
COMMON, SDPA = "common", "SDPA"
# Peaks grow as the positions to this power at most.
GROWTH = 1.1
FREE_SHARE = 0.6  # of the free memory, that what is known to store all scores may take


def checks(place: Place) -> list[Check]:
    sides = SMALL_SIDES if place.small else SIDES
    dtypes = ("float32",) if place.small else ("bfloat16", "float32")
    found = []
    for dtype in dtypes:
        for kind in ("map", "unet", "tokens"):
            found.append(Check(f"speed: {kind}, {dtype}", partial(_scan, kind, dtype, sides)))
    found.append(Check("speed: local forms", partial(_local, sides)))
    return [*found, Check("speed: sides of tiles", _tile_sizes)]


def _batch(side: int) -> int:
    return max(1, (256 if side in SMALL_SIDES else 32 * 32 * 32) // side**2)


def _case(kind: str, dtype: str, side: int) -> Case:
    """As many positions in all as 32 maps of 32x32 have, or one map."""
    batch = _batch(side)
    if kind == "map":
        shape, methods = (batch, 128, side, side), (OURS, COMMON, SDPA)
    elif kind == "unet":
        shape, methods = (batch, 256, side, side), (OURS, DIFFUSERS)
    else:
        shape, methods = (batch, side**2, 256), (OURS, TOKEN_SDPA, MHA, TIMM)
    name = f"speed: {kind}, {side}x{side}"
    return Case(name, kind, dtype, shape, BOTH, methods, heads=4)  # type: ignore[arg-type]


def _scan(kind: str, dtype: str, sides: tuple[int, ...], place: Place) -> Iterator[Finding]:
    peaks: dict[int, float] = {}
    for side in sides:
        found = list(_side(_case(kind, dtype, side), place))
        ours = next((each for each in found if each.method == OURS), None)
        if ours is not None and ours.peak_mib is not None:
            peaks[side] = ours.peak_mib / _batch(side)
        yield from found
    yield from _growth(f"speed: {kind}, growth of the peak", dtype, peaks)


def _growth(case: str, dtype: str, peaks: dict[int, float]) -> Iterator[Finding]:
    """Of the peak of one sample with its positions; small maps have little but overhead."""
    large = {side**2: peak for side, peak in peaks.items() if side >= 64}
    if len(large) >= 3:
        power = fitted_exponent([*large], [*large.values()])
        yield Finding(case, ok=power <= GROWTH, dtype=dtype, method=OURS, error=power, bound=GROWTH)


def _side(case: Case, place: Place) -> Iterator[Finding]:
    expected, found = None, []
    for name in case.methods:
        row = Finding(case.name, dtype=case.dtype, method=name)
        if too_large(case, name, place):
            row.note = "not run: all scores would take most of the free memory"
            yield row
            continue
        try:
            method = build_method(case, name)
        except ImportError as error:
            row.note = f"not run: {error}"
            yield row
            continue
        data = make_data(case, method.layout)
        there = Data(*(x.detach().to(place.device) for x in data))
        there.x.requires_grad_()
        method = method._replace(module=method.module.to(place.device))
        with record_routes() as record, Kernels() as kernels:
            result = step(case, method, there)
        routes = {route.name for _, route in record}
        row.route, row.kernel = " ".join(sorted(routes)), kernels.of(routes)
        if expected is None:
            expected = result
        row.error, row.bound = distance(case, there, expected, result), TOLERANCE[case.dtype]
        row.ok = row.error <= row.bound
        timer = Timer(place, fewest=1, seconds=0.0) if place.small else Timer(place)
        taken = timer.measure(partial(step, case, method, there))
        row.milliseconds, row.peak_mib = taken["milliseconds"], taken["peak_mib"]
        found.append(row)
        del method, data, there, result
    others = [x.milliseconds for x in found if x.method != OURS and x.milliseconds is not None]
    for row in found:
        if row.method == OURS and row.milliseconds is not None and others:
            ratio = row.milliseconds / min(others)
            row.note = f"{ratio:.2f} of the fastest of the others"
    yield from found


def too_large(case: Case, method: str, place: Place) -> bool:
    """Whether a method that stores all scores would take most of what is free."""
    if method not in (COMMON, SDPA) or not place.on_cuda:
        return False
    free, _ = torch.cuda.mem_get_info(place.device)
    return case.stored_bytes(method) > FREE_SHARE * free


def _local(sides: tuple[int, ...], place: Place) -> Iterator[Finding]:
    """Ours alone, beside no other: whether they stay linear, and what they take on a GPU."""
    dtype = "float32" if place.small else "bfloat16"
    for kind in ("window", "neighborhood", "axial", "criss_cross"):
        peaks: dict[int, float] = {}
        for side in sides if not place.small else (16,):
            shape = (1 if place.small else max(1, 64 * 64 // side**2), 64, side, side)
            case = Case(f"speed: {kind}, {side}x{side}", kind, dtype, shape, BOTH, (OURS,), heads=4)
            for row in _side(case, place):
                if row.peak_mib is not None:
                    peaks[side] = row.peak_mib / shape[0]
                yield row
        yield from _growth(f"speed: {kind}, growth of the peak", dtype, peaks)


def _tile_sizes(place: Place) -> Iterator[Finding]:
    """What tiles of other sizes would take here: theirs were chosen for the caches of a CPU."""
    side = 16 if place.small else 128
    sizes = (2**20,) if place.small else (2**20, 2**23, 2**26)
    before = tiles.TILE, criss_cross_tiles.TILE
    dtype = torch.float32
    call = make_call(
        batch=1, heads=1, length=side**2, key_length=side**2, width=16, value_width=64
    ).to(place.device, dtype)
    try:
        for size in sizes:
            tiles.TILE = size
            with use_route("tiled"):
                taken = Timer(place, seconds=1.0, fewest=1, most=5).measure(call.run)
            yield Finding(
                f"speed: tiles of {math.log2(size):.0f} bits, {side**2} tokens",
                dtype="float32",
                method=OURS,
                route="tiled",
                milliseconds=taken["milliseconds"],
                peak_mib=taken["peak_mib"],
                note=f"{size * 4 / MIB:.0f} MiB of scores",
            )
    finally:
        tiles.TILE, criss_cross_tiles.TILE = before

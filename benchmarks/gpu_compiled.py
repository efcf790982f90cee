"""What is compiled gives what it gives uncompiled: by Inductor, and replayed from CUDA graphs."""

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from gpu_checks import Check, Finding, Place, Yardstick, name_of, neighbour
from gpu_inputs import (
    draw,
    make_block,
    make_call,
    make_input,
    rounded,
    run_block,
    yardstick_of,
)
from torch import Tensor, nn

from cvattn.core import attention, use_route

REPLAYS = 4  # of a CUDA graph: recorded in the second or third
# The most telling first: the time may end before the last one.
FORMS = ("common", "tokens", "neighborhood", "criss-cross", "U-Net", "BigGAN", "window", "axial")


def checks(place: Place) -> list[Check]:
    if place.small:
        return [Check("compiled: common, aot_eager", partial(_form, "common", "aot_eager"))]
    ways = ON_CUDA if place.on_cuda else ON_CUDA[:1]
    tiles = {"masked tiles": _masked_tiles, "dropout over tiles": _dropout}
    # Side by side, since the time may end before the last form.
    forms = {name: partial(_form, name) for name in FORMS}
    every = {FORMS[0]: forms[FORMS[0]], **tiles, **forms}
    return [
        Check(f"compiled: {name}, {way}", partial(run, way))
        for name, run in every.items()
        for way in ways
    ]


WAYS: Mapping[str, Callable[..., Any]] = {
    "inductor": lambda x: torch.compile(x, fullgraph=True),
    "CUDA graphs": lambda x: torch.compile(x, fullgraph=True, mode="reduce-overhead"),
    "aot_eager": lambda x: torch.compile(x, fullgraph=True, backend="aot_eager"),
}
ON_CUDA = ("inductor", "CUDA graphs")


def _form(name: str, way: str, place: Place) -> Iterator[Finding]:
    """Against the same block uncompiled, whose own error is the measure."""
    _forget()
    dtype = torch.bfloat16 if way == "CUDA graphs" else torch.float32
    exact, x = rounded(make_block(name), make_input(name), dtype)
    inputs = [x, x.flip(0), x.roll(1, 1), 0.5 * x][: REPLAYS if place.on_cuda else 2]
    block = copy.deepcopy(exact).to(place.device, dtype)
    compiled = _Compiled(block, way)
    for index, each in enumerate(inputs, 1):

        def run(k: int, each=each) -> Any:
            moved = neighbour(each, k, dtype)
            return run_block(block, moved.to(place.device, dtype)), run_block(exact, moved)

        yardstick = Yardstick(run, dtype)
        torch.compiler.cudagraph_mark_step_begin()
        found = [_kept(part) for part in run_block(compiled, each.to(place.device, dtype))]
        verdict = yardstick.judge(found)
        if index == len(inputs) or not verdict["ok"]:
            yield Finding(
                f"compiled: {name}",
                dtype=name_of(dtype),
                method=way,
                note=f"call {index}; {_said()}".rstrip("; "),
                **verdict,
            )


class _Compiled(nn.Module):
    """A block whose calls are compiled and whose parameters are its own."""

    def __init__(self, block: nn.Module, way: str) -> None:
        super().__init__()
        self.block = block
        self.call = WAYS[way](block.forward)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def _kept(part: Any) -> Any:
    """Copies: a CUDA graph writes its next results where these are."""
    return part.clone() if isinstance(part, Tensor) else [each.clone() for each in part]


def _masked_tiles(way: str, place: Place) -> Iterator[Finding]:
    """The operator of the tiles with a mask, which in a graph must not wait for the device."""
    yield from _tiles("masked tiles", way, place, mask="pairs")


def _dropout(way: str, place: Place) -> Iterator[Finding]:
    """Each call of a compiled function draws anew, a replayed graph's too."""
    given = [draw(2, 3, 67, 16).to(place.device, torch.float32) for _ in "qkv"]
    _forget()
    compiled = WAYS[way](partial(attention, dropout_p=0.5))
    with use_route("tiled"):
        torch.manual_seed(0)
        outputs = []
        for _ in range(REPLAYS):
            torch.compiler.cudagraph_mark_step_begin()
            outputs.append(compiled(*given).clone())
    pairs = [(i, j) for i in range(REPLAYS) for j in range(i)]
    alike = [pair for pair in pairs if torch.equal(*(outputs[at] for at in pair))]
    yield Finding(
        "compiled: dropout over tiles",
        ok=not alike,
        dtype="float32",
        method=way,
        route="tiled",
        note=f"calls {alike} dropped the same" if alike else _said(),
    )


def _tiles(case: str, way: str, place: Place, **options: Any) -> Iterator[Finding]:
    dtype = torch.float32
    call = make_call(**options, dtype=dtype)
    given = call.to(place.device, dtype)
    _forget()
    compiled = WAYS[way](partial(attention, **given.terms))
    yardstick = yardstick_of(call, place, dtype, lambda c, f: [f(*c.tokens, **c.terms)])
    with use_route("tiled"):
        for index in range(REPLAYS):
            torch.compiler.cudagraph_mark_step_begin()
            verdict = yardstick.judge([compiled(*given.tokens).clone()])
            if index == REPLAYS - 1 or not verdict["ok"]:
                yield Finding(
                    f"compiled: {case}",
                    dtype=name_of(dtype),
                    method=way,
                    route="tiled",
                    note=f"call {index + 1}; {_said()}".rstrip("; "),
                    **verdict,
                )


def _forget() -> None:
    """What was compiled before, and what was said of it."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()


def _said() -> str:
    """Why there was no CUDA graph, if there was none."""
    from torch._dynamo.utils import counters

    skips = counters["inductor"].get("cudagraph_skips", 0)
    return f"CUDA graphs skipped: {skips}" if skips else ""

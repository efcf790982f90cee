"""Every route, form and importer on the device, against float64 on the CPU."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, get_args

import torch
from gpu_checks import DTYPES, Check, Finding, Kernels, Place, Yardstick, name_of, neighbour
from gpu_inputs import (
    BLOCKS,
    CALLS,
    SEED,
    TOKENS,
    Call,
    draw,
    make_block,
    make_call,
    make_input,
    rounded,
    run_block,
    yardstick_of,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cvattn import weights
from cvattn.core import record_routes, use_route
from cvattn.core.attention import AttentionCall
from cvattn.core.attention.plan import RouteName, why_impossible

FIRST = (torch.float32, torch.bfloat16)  # of those that are small
LOWER = DTYPES[1:]  # what torch's kernels take


def checks(place: Place) -> list[Check]:
    calls = ["plain", "odd widths", "mask, bias, causal"] if place.small else CALLS
    blocks = ["common", "neighborhood", "tokens"] if place.small else [*BLOCKS, *TOKENS]
    sources = ["torch", "Self_Attn"] if place.small else SOURCES
    kernels = ["flash"] if place.small else KERNELS
    return [
        *(Check(f"route: {name}", partial(_routes, name)) for name in calls),
        *(Check(f"kernel: {name}", partial(_kernel, name)) for name in kernels),
        *(Check(f"form: {name}", partial(_form, name)) for name in blocks),
        *(Check(f"importer: {name}", partial(_importer, name)) for name in sources),
    ]


def _routes(name: str, place: Place) -> Iterator[Finding]:
    """Output and all gradients of each route that can compute the call, and of the plan's."""
    for dtype in FIRST if place.small else DTYPES:
        call = make_call(**CALLS[name], dtype=dtype)
        given, yardstick = call.to(place.device, dtype), yardstick_of(call, place, dtype)
        # What is seen of the call: the plan's, which is also a row.
        with record_routes() as record, Kernels() as kernels:
            found = given.run()
        (seen, chosen), *_ = record
        yield Finding(
            f"route: {name}",
            dtype=name_of(dtype),
            route=f"plan: {chosen.name}",
            kernel=kernels.of({chosen.name}),
            **yardstick.judge(found),
        )
        for route in get_args(RouteName):
            if why_impossible(route, seen) is not None:
                continue
            with use_route(route), Kernels() as kernels:
                found = given.run()
            yield Finding(
                f"route: {name}",
                dtype=name_of(dtype),
                route=route,
                kernel=kernels.of({route}),
                **yardstick.judge(found),
            )


KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
FOR_KERNELS = ("plain", "keys hidden", "pairs hidden", "bias", "causal, square", "causal")


def _kernel(name: str, place: Place) -> Iterator[Finding]:
    """Each of torch's kernels by itself, where it takes the call: other GPUs choose others."""
    for dtype in FIRST if place.small else LOWER:
        for case in FOR_KERNELS:
            # Widths and layouts that every one of them takes.
            call = make_call(**CALLS[case], width=64, dtype=dtype)
            given, yardstick = call.to(place.device, dtype), yardstick_of(call, place, dtype)
            row = Finding(f"kernel: {case}", dtype=name_of(dtype), method=name, route="fused")
            if why_impossible("fused", _seen(given)) is not None:
                continue
            try:
                with use_route("fused"), sdpa_kernel(KERNELS[name]), Kernels() as seen:
                    found = given.run()
            except RuntimeError as error:
                if "No available kernel" not in str(error) and "No viable backend" not in str(
                    error
                ):
                    raise
                row.note = "does not take it"
                yield row
                continue
            verdict = yardstick.judge(found)
            row.ok, row.error, row.bound = verdict["ok"], verdict["error"], verdict["bound"]
            row.kernel = seen.of({"fused"})
            yield row


def _seen(call: Call) -> AttentionCall:
    with record_routes() as record:
        call.run()
    return record[0][0]


def _form(name: str, place: Place) -> Iterator[Finding]:
    """A block, in both memory formats, with and without padding of maps."""
    block, x = make_block(name), make_input(name)
    is_map = x.ndim == 4
    mask = _padding(x) if is_map else None
    for dtype in FIRST if place.small else DTYPES:
        exact_block, exact_x = rounded(block, x, dtype)
        block_there = copy.deepcopy(exact_block).to(place.device, dtype)
        x_there, pair = exact_x.to(place.device, dtype), (exact_block, block_there)
        for masked in (False, True) if is_map else (False,):
            terms = {"mask": mask} if masked else {}
            there = {key: value.to(place.device) for key, value in terms.items()}

            def run(k: int, terms=terms, there=there, dtype=dtype, pair=pair, x=exact_x) -> Any:
                moved = neighbour(x, k, dtype)
                with use_route("direct"):
                    own = run_block(pair[1], moved.to(place.device, dtype), **there)
                    return own, run_block(pair[0], moved, **terms)

            yardstick = Yardstick(run, dtype)
            for layout in (torch.contiguous_format, torch.channels_last)[: 2 if is_map else 1]:
                with record_routes() as record, Kernels() as kernels:
                    found = run_block(block_there, x_there, layout=layout, **there)
                routes = {route.name for _, route in record}
                words = [name, *["padded map"] * masked]
                words += ["channels_last"] * (layout is torch.channels_last)
                yield Finding(
                    f"form: {', '.join(words)}",
                    dtype=name_of(dtype),
                    route=" ".join(sorted(routes)),
                    kernel=kernels.of(routes),
                    **yardstick.judge(found),
                )


def _padding(x: Tensor) -> Tensor:
    """Maps of unequal sizes in one batch."""
    height, width = x.shape[2:]
    mask = torch.ones(len(x), height, width, dtype=torch.bool)
    mask[1, :, width - 4 :] = False
    mask[2, height - 3 :] = False
    return mask


# What others make, and ours with its weights; each imports what it needs.
Pair = tuple[nn.Module, Callable[..., Tensor], nn.Module, Callable[..., Tensor], Tensor]


def _torch() -> Pair:
    theirs = nn.MultiheadAttention(48, 3, batch_first=True)
    x = draw(3, 37, 48)
    return theirs, _self_call, weights.from_torch(theirs), _call, x


def _torch_layer() -> Pair:
    theirs = nn.TransformerEncoderLayer(48, 3, 96, dropout=0.0, batch_first=True)
    return theirs, _call, weights.from_torch(theirs), _call, draw(3, 37, 48)


def _self_attn() -> Pair:
    from peers import CommonSelfAttention

    block = make_block("common")
    theirs = CommonSelfAttention(block)
    names = {"query": "query_conv", "key": "key_conv", "value": "value_conv"}
    state = {"gamma": theirs.gamma}
    for name, other in names.items():
        layer = theirs.get_submodule(name)
        state |= {f"{other}.{key}": value for key, value in layer.state_dict().items()}
    return theirs, _call, weights.from_self_attn(state), _call, draw(3, 32, 11, 13)


def _diffusers() -> Pair:
    ours = make_block("U-Net")
    return weights.to_diffusers(ours), _call, ours, _call, draw(3, 32, 11, 13)


def _timm() -> Pair:
    from timm import create_model

    made = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 7}
    theirs = create_model("vit_tiny_patch16_224", pretrained=False, **made)
    return theirs, _call, weights.from_timm(theirs), _call, draw(3, 3, 32, 32)


def _torchvision() -> Pair:
    from torchvision.models import VisionTransformer

    theirs = VisionTransformer(32, 8, 2, 3, 48, 96, num_classes=7)
    return theirs, _call, weights.from_torchvision(theirs), _call, draw(3, 3, 32, 32)


SOURCES: Mapping[str, Callable[[], Pair]] = {
    "torch": _torch,
    "torch's layer": _torch_layer,
    "Self_Attn": _self_attn,
    "diffusers": _diffusers,
    "timm": _timm,
    "torchvision": _torchvision,
}


def _importer(name: str, place: Place) -> Iterable[Finding]:
    """Ours with their weights against theirs in float64; the bound is theirs on the device."""
    torch.manual_seed(SEED)
    case = f"importer: {name}"
    torch.set_default_dtype(torch.float64)  # an importer may add what others keep apart
    try:
        theirs, call, ours, our_call, x = SOURCES[name]()
    except ImportError as error:
        return [Finding(case, note=f"not run: {error}")]
    finally:
        torch.set_default_dtype(torch.float32)
    theirs, ours = theirs.eval(), ours.eval()
    found = []
    for dtype in FIRST if place.small else DTYPES:
        if dtype == torch.float16 and not place.on_cuda:
            continue
        exact, exact_x = rounded(theirs, x, dtype)
        other, mine = (copy.deepcopy(each).to(place.device, dtype) for each in (theirs, ours))

        @torch.no_grad()
        def run(k: int, other=other, exact=exact, exact_x=exact_x, dtype=dtype) -> Any:
            moved = neighbour(exact_x, k, dtype)
            return [call(other, moved.to(place.device, dtype))], [call(exact, moved)]

        with torch.no_grad():
            output = our_call(mine, exact_x.to(place.device, dtype))
        verdict = Yardstick(run, dtype).judge([output])
        found.append(Finding(case, dtype=name_of(dtype), **verdict))
    return found


def _call(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


def _self_call(module: nn.Module, x: Tensor) -> Tensor:
    return module(x, x, x, need_weights=False)[0]

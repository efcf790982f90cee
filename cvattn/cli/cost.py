"""``cvattn cost MODULE --input SIZES``: which way each attention takes, why, and what it costs."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cvattn.cli.building import build
from cvattn.cli.common import CommandError, Parser, add_network, own_network
from cvattn.core.memory import available_bytes
from cvattn.cost import (
    AttentionCost,
    count_macs,
    count_parameters,
    explain_attention,
    predict_peak,
)
from cvattn.cost.memory import can_trace
from cvattn.system import did_you_mean

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WHOLE = {"int64": torch.int64, "bool": torch.bool}


def run(arguments: Sequence[str]) -> int:
    """The command."""
    args = _parser().read(arguments)
    dtype = _named(args.dtype, DTYPES, "--dtype")
    module, is_network = build(args.module, own_network(args))
    # Buffers such as counters stay whole numbers.
    module = module.to(dtype)
    texts = args.input or _own_input(module)
    # A block stands in the middle of a network, which asks it for its input's gradient.
    wants = args.training and not is_network
    inputs = [_input(text, dtype, wants) for text in texts]
    try:
        costs = explain_attention(module, *inputs, device=args.device, training=args.training)
        macs = count_macs(module, *inputs)
        peak = (
            predict_peak(module, *inputs, training=args.training, device=args.device)
            if can_trace(args.device)
            else None
        )
    except (TypeError, ValueError, RuntimeError, LookupError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CommandError(f"{args.module} does not take {', '.join(texts)}: {lines[0]}") from error
    held = sum(_size(x) for x in [*module.parameters(), *module.buffers(), *inputs])
    free = available_bytes(torch.device(args.device))
    found = {
        "module": args.module,
        "inputs": texts,
        "dtype": args.dtype,
        "device": args.device,
        "training": args.training,
        "attention": [cost._asdict() | {"dtype": str(cost.dtype)[6:]} for cost in costs],
        "parameters": count_parameters(module),
        "macs": macs,
        "peak_bytes": peak,
        "held_bytes": held,
        "available_bytes": free,
        "fits": None if peak is None or free is None else held + peak <= free,
    }
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        _show(found, costs)
    return 0


def _named(given: str, known: dict[str, torch.dtype], what: str) -> torch.dtype:
    if given not in known:
        raise CommandError(f"{what} {given!r} is not known{did_you_mean(given, known)}")
    return known[given]


def _own_input(module: nn.Module) -> list[str]:
    """One image, for networks that say which they take."""
    sizes = getattr(module, "in_channels", None), getattr(module, "image_size", None)
    if isinstance(sizes[0], int) and isinstance(sizes[1], tuple):
        return [",".join(map(str, (1, sizes[0], *sizes[1])))]
    raise CommandError("what is it called with? Give --input SIZES, such as --input 2,64,32,32")


def _input(text: str, dtype: torch.dtype, wants_gradient: bool) -> Tensor:
    sizes, _, kind = text.partition(":")
    given = _named(kind, DTYPES | WHOLE, f"--input {text}:") if kind else dtype
    try:
        shape = [int(size) for size in sizes.split(",")]
    except ValueError:
        shape = []
    if not shape or min(shape) < 1:
        raise CommandError(
            f"cannot read --input {text!r}; expected sizes of at least 1 such as 2,64,32,32, and "
            "for whole numbers their type after them, such as 2,17:int64"
        )
    gradient = wants_gradient and given.is_floating_point
    return torch.empty(shape, dtype=given, device="meta", requires_grad=gradient)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _show(found: dict[str, Any], costs: Sequence[AttentionCost]) -> None:
    what = "forward and backward" if found["training"] else "forward"
    print(f"{found['module']} on {', '.join(found['inputs'])}: {found['dtype']}, {what}, ", end="")
    print(f"{found['device']}\n")
    if costs:
        head = ("attention", "tokens", "batch x heads", "widths", "route", "peak", "GFLOP")
        rows = [head, *map(_row, costs)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
            print("  ".join(cells).rstrip())
        print()
        for cost, names in _alike(costs):
            count = f" ({len(names)} times)" if len(names) > 1 else ""
            print(f"{cost.route}{count}: {cost.reason}")
            for route, why in cost.refused.items():
                print(f"  not {route}: {why}")
        print()
    else:
        print("no attention of cvattn's is called\n")
    print(f"parameters  {found['parameters']:,}")
    print(f"MACs        {found['macs'] / 1e9:.4g} G, forward")
    if found["peak_bytes"] is None:
        print("peak        unknown: torch finds no GPU here to trace the kernels of")
        return
    print(f"peak        {_bytes(found['peak_bytes'])} above parameters and inputs, ", end="")
    print(f"which hold {_bytes(found['held_bytes'])}")
    if found["fits"] is not None:
        verdict = "fits" if found["fits"] else "does not fit"
        print(f"{verdict}: {_bytes(found['available_bytes'])} are available now")


def _row(cost: AttentionCost) -> tuple[str, ...]:
    return (
        cost.name or "(itself)",
        f"{cost.queries} x {cost.keys}",
        f"{cost.batch} x {cost.heads}",
        f"{cost.head_dim}, {cost.value_dim}",
        cost.route,
        "?" if cost.peak_bytes is None else _bytes(cost.peak_bytes),
        f"{cost.flops / 1e9:.4g}",
    )


def _alike(costs: Sequence[AttentionCost]) -> list[tuple[AttentionCost, list[str]]]:
    """One for each route with its reasons, and the names of all that took it for these."""
    groups: dict[tuple, tuple[AttentionCost, list[str]]] = {}
    for cost in costs:
        key = (cost.route, cost.reason, *cost.refused.items())
        groups.setdefault(key, (cost, []))[1].append(cost.name)
    return list(groups.values())


def _bytes(size: int) -> str:
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 2**power:
            return f"{size / 2**power:.4g} {unit}"
    return f"{size} B"


def _parser() -> Parser:
    parser = Parser(
        prog="cvattn cost",
        description="Print for each attention of a module which way it is computed, why, why not "
        "another way, its operations and its peak memory; then the totals. Nothing is computed: "
        "shapes alone pass through.",
    )
    parser.add_argument(
        "module",
        metavar="MODULE",
        help="a block or network with its arguments, such as 'SelfAttention2d(128)' or "
        "'VisionTransformer(10, image_size=(32, 64))', or a .ckpt file of a run",
    )
    add_network(parser)
    parser.add_argument(
        "--input",
        action="append",
        metavar="SIZES",
        help="what it is called with, such as 2,128,100,100, or 2,17:int64; once for each input "
        "(one image, for networks that say what they take)",
    )
    parser.add_argument(
        "--dtype", default="float32", help="of weights and inputs: " + ", ".join(DTYPES)
    )
    parser.add_argument(
        "--device",
        default="cpu",
        choices=("cpu", "cuda"),
        help="cuda without a GPU: the plan alone",
    )
    parser.add_argument(
        "--training",
        action="store_true",
        help="forward and backward; for blocks with the gradient of their inputs",
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    return parser

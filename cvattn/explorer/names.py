"""Short names of blocks, as they stand below their pictures."""

import re
from collections.abc import Sequence
from itertools import pairwise

# A number by itself, as of the layers in a stack; not that of "stage2".
_NUMBER = re.compile(r"(?<![^._])\d+(?=\.|$)")
_BLOCKS = re.compile(r"_blocks?$")
_SAYS_NOTHING = re.compile(r"(self_|cross_|inserted_)?(attn|attention)")


def short_names(names: Sequence[str]) -> list[str]:
    """Of each name what tells it from the others; a stack of layers is counted from 1.

    ``blocks.0.attn`` is "layer 1", ``layer3.inserted_attention`` "layer3", and of a U-Net
    ``down_blocks.1.attentions.0.transformer_blocks.0.attn2`` is "down.1.0.attn2".
    """
    if one_stack(names):
        return [f"layer {int(_NUMBER.findall(name)[0]) + 1}" for name in names]
    paths = [name.split(".") for name in names]
    shared = set.intersection(*map(set, paths)) if len(paths) > 1 else set()
    fixed = _fixed(paths)
    short = []
    for path in paths:
        kept = [
            part
            for index, part in enumerate(path)
            if (part.isdigit() and (path[index - 1], part) not in fixed)
            or not (part.isdigit() or part in shared or _SAYS_NOTHING.fullmatch(part))
        ]
        short.append(".".join(_BLOCKS.sub("", part) or part for part in kept))
    told = all(re.search("[a-z]", name, re.IGNORECASE) for name in short)
    return short if told and len(set(short)) == len(names) else _without_ends(paths)


def one_stack(names: Sequence[str]) -> bool:
    """Whether the names differ by one number alone, as those of the layers of a stack."""
    patterns = {_NUMBER.sub("#", name) for name in names}
    (pattern, *others) = patterns
    return not others and pattern.count("#") == 1 and re.search("[a-z]", pattern, re.I) is not None


def follow_each_other(names: Sequence[str]) -> bool:
    """Whether they are a stack of layers, or a part of one without gaps, first to last."""
    if not one_stack(names):
        return False
    numbers = [int(_NUMBER.findall(name)[0]) for name in names]
    return numbers == list(range(numbers[0], numbers[0] + len(names)))


def _fixed(paths: Sequence[Sequence[str]]) -> set[tuple[str, str]]:
    """Words that have one number wherever they stand, with it: ("transformer_blocks", "0")."""
    numbers: dict[str, set[str]] = {}
    for path in paths:
        for word, part in pairwise(path):
            if part.isdigit():
                numbers.setdefault(word, set()).add(part)
    everywhere = set.intersection(*map(set, paths))
    return {
        (word, min(found))
        for word, found in numbers.items()
        if len(found) == 1 and word in everywhere
    }


def _without_ends(paths: Sequence[Sequence[str]]) -> list[str]:
    """Without the first and last parts that all of them have; a number keeps the word before."""
    shortest = min(map(len, paths)) - 1
    first = 0
    while len(paths) > 1 and first < shortest and len({path[first] for path in paths}) == 1:
        first += 1
    if first and any(path[first].isdigit() for path in paths):
        first -= 1
    last = 0
    while (
        last < shortest - first
        and len({path[-1 - last] for path in paths}) == 1
        and _SAYS_NOTHING.fullmatch(paths[0][-1 - last])
    ):
        last += 1
    return [".".join(path[first : len(path) - last]) for path in paths]

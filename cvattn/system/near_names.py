"""What may have been meant by a name that is not known."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """'; did you mean a, b?' with near matches, or the whole list when there is none."""
    known = list(known)
    # The right key in the wrong place: recipe.lr for recipe.optimizer.lr.
    leaf = given.rpartition(".")[2]
    near = [name for name in known if "." in name and name.rpartition(".")[2] == leaf]
    near = near[:3] or get_close_matches(given, known, n=3, cutoff=0.6)
    if near:
        return f"; did you mean {', '.join(near)}?"
    return f"; there are: {', '.join(known)}" if known else ""

"""matplotlib figures: names as they are in them, and no run or command lost over a picture."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from cvattn.system.terminal import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def label(text: str, longest: int = 60) -> str:
    """The text as matplotlib draws it as it is: no mathematics between two $, one line, cut."""
    text = printable(text)
    text = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return text.replace("$", r"\$")


def save(figure: "Figure", file: IO[bytes]) -> None:
    """The figure as a PNG. Signs that no font has become boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*missing from font")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        figure.savefig(file, dpi=130, format="png")


@contextmanager
def tolerate_failure(name: str) -> Iterator[None]:
    """Whatever goes wrong inside is said in one line: a picture is not worth what it is of."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        print(
            f"note: {name} was not drawn: {type(error).__name__}: {printable(reason)}",
            file=sys.stderr,
        )

"""Classes of labels that are written as numbers or as names, as shards and tables have them."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from cvattn.data.checks import DataError
from cvattn.data.images.folder_files import named
from cvattn.system import printable

_NUMBER = re.compile(r"[+-]?\d+")


class LabelNames:
    """The classes, and which of them a written label means.

    A label that is one of the classes' names means it; if not all labels are, numbers count the
    classes from 0.

    Args:
        classes: their names.
        numbers: labels are numbers 0..K-1, not names.
    """

    def __init__(self, classes: Sequence[str], *, numbers: bool) -> None:
        self.classes = tuple(classes)
        self._index = {str(i) if numbers else name: i for i, name in enumerate(self.classes)}
        self._numbers = numbers

    @classmethod
    def of(cls, found: Sequence[str], given: Sequence[str] | None, where: str) -> "LabelNames":
        """The classes of training samples.

        Args:
            found: the different labels of the training samples, as they are written.
            given: ``data.classes``; None: the names, or the numbers, that were found.
            where: what has the labels, for messages.

        Raises:
            DataError: there are fewer than 2, or numbers and names side by side.
        """
        numbers = [text for text in found if _NUMBER.fullmatch(text)]
        if given is not None:
            if len(set(given)) != len(given) or len(given) < 2:
                raise DataError(
                    f"{where} needs classes of 2 or more different names, got {named(list(given))}"
                )
            counted = not set(found) <= set(given) and len(numbers) == len(found)
            return cls(given, numbers=counted)
        if numbers and len(numbers) < len(found):
            name = next(text for text in found if text not in numbers)
            raise DataError(
                f"labels of {where} are numbers ({numbers[0]}) and names ({printable(name)}) side "
                "by side; data.classes says which classes there are"
            )
        if negative := [text for text in numbers if int(text) < 0]:
            raise DataError(
                f"{where} has the label {negative[0]}, which often stands for samples without a "
                "label; leave them out, or name all classes with data.classes"
            )
        if len({_plain(text) for text in found}) < 2:
            raise DataError(f"{where} has only the class {named(list(found))}; expected 2 or more")
        if numbers:
            return cls([str(n) for n in sorted({int(text) for text in numbers})], numbers=False)
        return cls(sorted(found), numbers=False)

    def index(self, text: str) -> int | None:
        """The class of a label as it is written, or None."""
        found = self._index.get(text)
        return self._index.get(_plain(text)) if found is None else found

    def strange(self, text: str) -> str:
        """What is wrong with a label that means none of them."""
        if self._numbers:
            return f"the label {printable(text)}, expected 0..{len(self.classes) - 1}"
        near = difflib.get_close_matches(text, self.classes, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f" ({named(self.classes)})"
        return f"the label {printable(text)!r}, none of the {len(self.classes)} classes{hint}"


def read_classes(classes: Sequence[str] | str | None) -> tuple[str, ...] | None:
    """``data.classes``: names, or the path of a text file with a name in each line.

    Raises:
        DataError: the file cannot be read.
    """
    if classes is None:
        return None
    if not isinstance(classes, str):
        return tuple(str(each) for each in classes)
    path = Path(classes).expanduser().absolute()
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"data.classes={classes}: {path} cannot be read as text ({error}); expected a file "
            "with a name in each line, or a list of names"
        ) from error
    return tuple(line.strip() for line in lines if line.strip())


def _plain(text: str) -> str:
    """``7`` of ``007`` and ``+7``; other texts as they are."""
    return str(int(text)) if _NUMBER.fullmatch(text) else text

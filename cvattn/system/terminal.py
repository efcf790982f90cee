"""Names of the user's, where a terminal or a spreadsheet would take them for commands."""

import unicodedata


def printable(text: str, *, lines: bool = False) -> str:
    r"""The text with what steers a terminal written out: ESC as ``\x1b``, a line's end as ``\n``.

    Control characters, marks of writing direction, and bytes that are no text (a file's name may
    have such) are escaped as Python does it; letters of any script stay.

    Args:
        text: a name, or a message with names in it.
        lines: the text may have several lines: its line ends stay, and its tabs.
    """
    return "".join(c if _is_plain(c) or (lines and c in "\n\t") else _escaped(c) for c in text)


def csv_cell(text: str) -> str:
    """The text as a cell that no spreadsheet takes for a formula: with ``'`` before = + - @."""
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") else text


# Marks of direction (Cf) can show a name in another order; the joiners and the variation of emoji
# and of several scripts are Cf or Mn too, and harmless.
_JOINERS = "\u200c\u200d"


def _is_plain(character: str) -> bool:
    kind = unicodedata.category(character)
    return kind not in ("Cc", "Cf", "Cs", "Zl", "Zp") or character in _JOINERS


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")

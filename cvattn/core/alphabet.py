"""Characters and the token ids that stand for them."""

from collections.abc import Iterable, Sequence

# The ids of what is no character: filling behind a sequence, its beginning, its end.
PAD, BEGIN, END = 0, 1, 2
FIRST = 3  # the id of an alphabet's first character


class Alphabet:
    """Strings to token ids and back.

    Args:
        characters: one code point each, in the order of their ids, which begin at 3.

    Raises:
        ValueError: no characters, some twice, or some that are not one code point.
    """

    def __init__(self, characters: Sequence[str]) -> None:
        self.characters = tuple(characters)
        if not self.characters:
            raise ValueError("an alphabet needs at least one character")
        for character in self.characters:
            if not isinstance(character, str) or len(character) != 1:
                raise ValueError(f"{character!r} of the alphabet must be one character")
        self._ids = {character: FIRST + i for i, character in enumerate(self.characters)}
        if len(self._ids) < len(self.characters):
            twice = sorted({c for c in self.characters if self.characters.count(c) > 1})
            raise ValueError(f"{''.join(twice)!r}: each character may be in the alphabet once")

    def __len__(self) -> int:
        """Number of token ids, the three that are no characters included."""
        return FIRST + len(self.characters)

    def encode(self, text: str) -> list[int]:
        """The ids of BEGIN, each character, and END.

        Raises:
            ValueError: a character that the alphabet has not, with its place.
        """
        for place, character in enumerate(text):
            if character not in self._ids:
                shown = "".join(self.characters[:60]) + "..." * (len(self.characters) > 60)
                raise ValueError(
                    f"character {character!r} (U+{ord(character):04X}), number {place + 1} of "
                    f"{text!r}, is not in the alphabet {shown!r}"
                )
        return [BEGIN, *(self._ids[character] for character in text), END]

    def decode(self, ids: Iterable[int]) -> str:
        """The characters before the first END; PAD and BEGIN are passed over."""
        found = []
        for token in ids:
            if token == END:
                break
            if token >= FIRST:
                found.append(self.characters[token - FIRST])
        return "".join(found)

import pytest

from cvattn.core import Alphabet


def test_there_and_back():
    alphabet = Alphabet("0123ßé界")
    assert len(alphabet) == 3 + 7
    assert alphabet.encode("3é0") == [1, 6, 8, 3, 2]
    assert alphabet.decode([1, 6, 8, 3, 2, 0, 0]) == "3é0"
    assert alphabet.decode([6, 0, 8]) == "3é"  # no END came
    assert alphabet.decode([2, 6]) == ""


@pytest.mark.parametrize(
    ("characters", "message"),
    [
        ("", "at least one character"),
        ("abca", "'a': each character may be in the alphabet once"),
        (["ab", "c"], "'ab' of the alphabet must be one character"),
        ([1], "1 of the alphabet must be one character"),
    ],
)
def test_impossible_alphabets(characters, message):
    with pytest.raises(ValueError, match=message):
        Alphabet(characters)


def test_an_unknown_character_is_named_with_its_place():
    with pytest.raises(
        ValueError, match=r"'é' \(U\+00E9\), number 3 of '12é', is not in the alpha"
    ):
        Alphabet("0123").encode("12é")

"""What a word is: one Unicode rule for counting, table look-up and switching, whatever the tokenizer."""

from __future__ import annotations

import regex

APOSTROPHES = "'\u2019"
"""Characters that join letters into one word (don't, l'eau)."""

WORD = regex.compile(rf"[\p{{L}}\p{{M}}]+(?:[{APOSTROPHES}][\p{{L}}\p{{M}}]+)*|\p{{N}}+|[^\s\p{{L}}\p{{M}}\p{{N}}]+")
"""A run of letters and marks (with apostrophes inside), a run of digits, or a run of other visible characters."""

_ALPHABETIC = regex.compile(r"[\p{L}\p{M}]")


def words_of(text: str) -> list[str]:
    """The words of ``text`` in order; every character that is not white space belongs to exactly one."""
    return WORD.findall(text)


def is_alphabetic(word: str) -> bool:
    """Whether ``word`` is made of letters, and so counts in the coverage of running words."""
    return _ALPHABETIC.match(word) is not None


def copy_case(pattern: str, word: str) -> str:
    """``word`` with the case of ``pattern``: Title and UPPER are copied, lower and mixed leave ``word`` as it is.

    A lower-case pattern changes nothing, so that German nouns keep their capital (piano -> Klavier); scripts without
    case have nothing to copy.
    """
    letters = [character for character in pattern if character.isalpha()]
    if len(letters) > 1 and all(character.isupper() for character in letters):
        return word.upper()
    if letters and letters[0].isupper() and not any(character.isupper() for character in letters[1:]):
        return word[:1].upper() + word[1:]
    return word

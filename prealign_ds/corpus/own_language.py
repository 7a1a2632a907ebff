"""Paragraphs that are in another language than their text: translated manuals keep what nobody has translated yet."""

from __future__ import annotations

from functools import cache

import regex
from simplemma.language_detector import langdetect

from prealign_ds.languages import base_of, letters_of

_PARAGRAPHS = regex.compile(r"\n\s*\n")
_LETTER = regex.compile(r"\p{L}")
_OWN_SHARE = 0.5


def own_paragraphs(text: str, language: str, other: str = "en") -> str:
    """``text`` without the paragraphs that are not in its language.

    A paragraph stays if more than half of its letters are of the language's script, and, where both languages share
    theirs, if no fewer of its words are known in the language than in the other one (simplemma's dictionaries).

    Args:
        text: Paragraphs, parted by empty lines.
        language: Its language.
        other: What it is translated from.

    Raises:
        ValueError: If nothing is known that would tell the two languages apart.
    """
    return "\n\n".join(part for part in _PARAGRAPHS.split(text) if _is_own(part, language, other))


def _is_own(paragraph: str, language: str, other: str) -> bool:
    letters, by_words = _signs(language, other)
    own = len(letters.findall(paragraph))
    if own <= _OWN_SHARE * len(_LETTER.findall(paragraph)):
        return False
    if not by_words:
        return True
    known = dict(langdetect(paragraph, lang=(base_of(language), base_of(other))))  # neither, where there is no word
    return known.get(base_of(language), 0.0) >= known.get(base_of(other), 0.0)


@cache
def _signs(language: str, other: str) -> tuple[regex.Pattern[str], bool]:
    """What finds a language's letters, and whether words must tell it from the other language."""
    letters = letters_of(language)
    if letters is None or base_of(language) == base_of(other):
        raise ValueError(f"language {language}: its paragraphs cannot be told from those in {other}; take all")
    by_words = letters == letters_of(other)
    if by_words:
        try:
            langdetect("a", lang=(base_of(language), base_of(other)))
        except ValueError as error:
            raise ValueError(f"language {language}: no words are known that tell it from {other}; take all") from error
    return regex.compile(f"[{letters}]"), by_words

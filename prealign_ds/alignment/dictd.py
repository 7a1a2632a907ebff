"""Dictionaries of the dict server (dictd): an index beside the text, and the translations in articles of two kinds.

The index has a line ``headword<TAB>offset<TAB>size`` for each article, in digits of base 64; the text is plain or
packed (dictzip, which gzip reads). See the manual of dictfmt, https://manpages.debian.org/dictfmt.
"""

from __future__ import annotations

import gzip
import string
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import regex

from prealign_ds.files import numbered_lines

_DIGITS = {digit: value for value, digit in enumerate(string.ascii_uppercase + string.ascii_lowercase + "0123456789+/")}
_ABOUT = ("00database", "00-database")
_BRACKETS = regex.compile(r"(?P<one>[(<\[{](?:[^()<>\[\]{}]|(?P>one))*[)>\]}])")
_HEAD_ENDS = regex.compile(r"\s+[/<\[]")
_PRONUNCIATION = regex.compile(r"/[^/\n]*[ˈˌː][^/\n]*/")
_SENSE_NUMBER = regex.compile(r"^\d+[.)]\s+")
_RUSSIAN = regex.compile(r"[\p{Cyrillic}\p{M}\s-]+")
_MOST_WORDS = 3
_NEARLY_ALL = 0.9
_MUELLER_MARKS = regex.compile(r"_\w+\.?|\b\d+[.)>]|[↗=]")


class Article(NamedTuple):
    """A headword as it is printed, and the text below it."""

    headword: str
    text: str


def articles(index: Path) -> Iterator[tuple[int, Article]]:
    """The articles of a dictionary with the line of the index that names each, each once, in the order of the text.

    Where nearly all headwords have a capital, it means nothing, and they are lower-cased.

    Args:
        index: The file ``NAME.index``; ``NAME.dict`` or ``NAME.dict.dz`` lies beside it.

    Raises:
        ValueError: If a file is missing, damaged or not of this kind, with the line.
    """
    data = _text_of(index)
    places: dict[tuple[int, int], int] = {}
    for number, line in numbered_lines(index):
        word, *fields = line.split("\t")
        if len(fields) < 2 or not all(field and set(field) <= _DIGITS.keys() for field in fields[:2]):
            raise ValueError(f"{index}:{number}: expected `headword<TAB>offset<TAB>size` in base 64; not a dictd index")
        start, size = (_number(field) for field in fields[:2])
        if start + size > len(data):
            raise ValueError(f"{index}:{number}: points behind the end of the text; fetch both files again")
        if not word.startswith(_ABOUT):
            places.setdefault((start, size), number)
    order = [(number, start, start + size) for (start, size), number in sorted(places.items())]
    capitals = sum(data[start : start + 1].isupper() for _, start, _ in order)
    for number, start, end in order:
        try:
            head, _, text = data[start:end].decode().partition("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{index}:{number}: its article is not UTF-8 ({error.reason}); convert it") from error
        head = _HEAD_ENDS.split(head, maxsplit=1)[0].strip()
        yield number, Article(head.lower() if capitals > _NEARLY_ALL * len(order) else head, text)


def freedict_translations(text: str) -> list[str]:
    """The translations in an article of FreeDict: lists at the margin; notes, examples and synonyms are indented.

    Pronunciations are left out.
    """
    lines = (line for line in _PRONUNCIATION.sub("", text).splitlines() if line and not line[0].isspace())
    return _parts(" ; ".join(_SENSE_NUMBER.sub("", line) for line in lines))


def mueller_translations(text: str) -> list[str]:
    """The translations in an article of Mueller's English-Russian dictionary: short Russian parts without English.

    Parts with English are examples; long ones, and those with abbreviations, explain how a word is used.
    """
    parts = _parts(_MUELLER_MARKS.sub(" ; ", _BRACKETS.sub(" ", " ".join(text.split()))))
    return [part for part in parts if _RUSSIAN.fullmatch(part) and len(part.split()) <= _MOST_WORDS]


def _parts(text: str) -> list[str]:
    parts = regex.split(r"[;,]", _BRACKETS.sub(" ", text))
    return [part for part in (" ".join(part.split()).strip(" .:!?") for part in parts) if part]


def _text_of(index: Path) -> bytes:
    if index.suffix != ".index":
        raise ValueError(f"{index}: give the dictionary's file NAME.index")
    plain, packed = index.with_suffix(".dict"), index.with_suffix(".dict.dz")
    if plain.is_file():
        return plain.read_bytes()
    if not packed.is_file():
        raise ValueError(f"{packed}: missing beside the index; fetch both files")
    try:
        with gzip.open(packed) as handle:
            return handle.read()
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{packed}: damaged or cut short ({error}); fetch the file again") from error


def _number(digits: str) -> int:
    value = 0
    for digit in digits:
        value = 64 * value + _DIGITS[digit]
    return value

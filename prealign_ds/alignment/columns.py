"""The alignment table as flat columns: gathering them, and the two files (Parquet and JSONL) that hold them."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prealign_ds.alignment.sources import parse_json
from prealign_ds.files import numbered_lines
from prealign_ds.languages import check_language

if TYPE_CHECKING:
    from prealign_ds.alignment.table import AlignmentTable

_SCHEMA = pa.schema(
    [
        ("word", pa.string()),
        ("count", pa.int64()),
        ("spaced", pa.int64()),
        ("language", pa.string()),
        ("translation", pa.string()),
        ("source", pa.string()),
        ("held_out", pa.bool_()),
    ]
)
_JSON_KEYS = {"word", "count", "spaced", "translations", "sources", "held_out"}
_COUNTS_RULE = "count and spaced: give whole numbers with 0 <= spaced <= count"


class Names(dict[str, int]):
    """Numbers names in the order in which they are first asked for."""

    def __missing__(self, name: str) -> int:
        """Give ``name`` the next number."""
        number = self[name] = len(self)
        return number


class Columns:
    """Translations being gathered: numbers of eight bytes each, and every name once."""

    def __init__(self) -> None:
        self.words, self.languages, self.texts, self.sources = Names(), Names(), Names(), Names()
        self._edges = (array("q"), array("q"), array("q"), array("q"))

    def add(self, word: str, language: str, text: str, source: str) -> None:
        """Append one translation."""
        words, languages, texts, sources = self._edges
        words.append(self.words[word])
        languages.append(self.languages[language])
        texts.append(self.texts[text])
        sources.append(self.sources[source])

    @property
    def names(self) -> list[list[str]]:
        """Words, languages, texts and sources, each in the order of their numbers."""
        return [list(names) for names in (self.words, self.languages, self.texts, self.sources)]

    @property
    def edges(self) -> np.ndarray:
        """Word, language, text and source of each translation as numbers, int64 of shape (4, n)."""
        return np.stack([np.array(column, dtype=np.int64) for column in self._edges])

    def extend(self, names: Sequence[Sequence[str]], edges: np.ndarray) -> None:
        """Append translations that are already numbered, by other names.

        Args:
            names: Words, languages, texts and sources.
            edges: Numbers of these, of shape (4, n).
        """
        for own, column, other, numbers in zip(
            (self.words, self.languages, self.texts, self.sources), self._edges, names, edges, strict=True
        ):
            renumbered = np.array([own[name] for name in other], dtype=np.int64)
            column.frombytes(renumbered[numbers].tobytes())


class Read(NamedTuple):
    """A table's file: names and edges as in :class:`Columns` and, for each of the words, what is known of it."""

    names: list[list[str]]
    edges: np.ndarray
    counts: np.ndarray
    spaced: np.ndarray
    held_out: np.ndarray


def read_parquet(path: Path) -> Read:
    """Read the file that :func:`write_parquet` writes.

    Raises:
        ValueError: If it is not such a file, with the row.
    """
    try:
        file = pq.read_table(path)
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file ({error}); build the table again") from error
    _check_schema(path, file)
    numbered = {}
    for name in ("word", "language", "translation", "source"):
        column = file[name].combine_chunks().dictionary_encode()
        numbered[name] = column.dictionary.to_pylist(), column.indices.to_numpy().astype(np.int64)
        if name != "source" and "" in numbered[name][0]:
            row = pc.index(file[name], pa.scalar("", file[name].type)).as_py()
            raise ValueError(f"{path}: row {row + 1}: empty {name}; remove the row")
    for language in numbered["language"][0]:
        with _located(str(path)):
            check_language(language)
    words, word = numbered["word"]
    counts, spaced = (_by_word(path, file[name].to_numpy(), words, word, name) for name in ("count", "spaced"))
    if (wrong := np.flatnonzero((spaced < 0) | (spaced > counts))).size:
        raise ValueError(f"{path}: word {words[wrong[0]]!r}: {_COUNTS_RULE}")
    held_out = np.zeros(len(words), dtype=bool)
    held_out[word[file["held_out"].to_numpy()]] = True
    edges = np.stack([numbers for _, numbers in numbered.values()])
    return Read([names for names, _ in numbered.values()], edges, counts, spaced, held_out)


def _check_schema(path: Path, file: pa.Table) -> None:
    if missing := [name for name in _SCHEMA.names if name not in file.column_names]:
        raise ValueError(f"{path}: no column {', '.join(missing)}; expected {', '.join(_SCHEMA.names)}")
    for field in _SCHEMA:
        found = file[field.name]
        kinds = [(pa.types.is_integer, "integers"), (pa.types.is_boolean, "true or false"), (_is_text, "text")]
        for is_kind, name in kinds:
            if is_kind(field.type) and not is_kind(found.type):
                raise ValueError(f"{path}: column {field.name}: expected {name}, found {found.type}")
        if found.null_count:
            row = pc.index(found.is_null(), True).as_py()
            raise ValueError(f"{path}: row {row + 1}: no {field.name}; fill it in or remove the row")


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _by_word(path: Path, values: np.ndarray, words: list[str], word: np.ndarray, name: str) -> np.ndarray:
    """The one value that all rows of a word have."""
    result = np.zeros(len(words), dtype=np.int64)
    result[word] = values
    if (wrong := np.flatnonzero(result[word] != values)).size:
        row = int(wrong[0])
        raise ValueError(f"{path}: row {row + 1}: {words[word[row]]!r} has several values of {name}; keep one")
    return result


def read_jsonl(path: Path) -> Read:
    """Read the file that :func:`write_jsonl` writes; only ``word`` and ``translations`` are needed.

    Raises:
        ValueError: If a line is not such an entry, with its number.
    """
    columns = Columns()
    counts, spaced, held_out = array("q"), array("q"), array("b")
    for number, line in numbered_lines(path):
        with _located(f"{path}:{number}"):
            entry = _checked_entry(parse_json(line))
            if entry["word"] in columns.words:
                raise ValueError(f"word {entry['word']!r} is there a second time; join its lines")
            for language, texts in entry["translations"].items():
                sources = entry.get("sources", {}).get(language, [""] * len(texts))
                for text, source in zip(texts, sources, strict=True):
                    columns.add(entry["word"], language, text, source)
            counts.append(entry.get("count", 0))
            spaced.append(entry.get("spaced", 0))
            held_out.append(entry.get("held_out", False))
    return Read(columns.names, columns.edges, np.array(counts), np.array(spaced), np.array(held_out, dtype=bool))


def _checked_entry(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict) or not {"word", "translations"} <= entry.keys() <= _JSON_KEYS:
        raise ValueError(f'expected an object with "word" and "translations", of the keys {sorted(_JSON_KEYS)}')
    if not isinstance(entry["word"], str) or not entry["word"]:
        raise ValueError(f"word {entry['word']!r}: give a string that is not empty")
    count, spaced = entry.get("count", 0), entry.get("spaced", 0)
    if type(count) is not int or type(spaced) is not int or not 0 <= spaced <= count:
        raise ValueError(_COUNTS_RULE)
    if type(entry.get("held_out", False)) is not bool:
        raise ValueError("held_out: give true or false")
    lengths = _checked_lists(entry["translations"], "translations")
    if not lengths or not all(map(all, entry["translations"].values())):
        raise ValueError("translations: there is none, or an empty one; remove it")
    for language, length in _checked_lists(entry.get("sources", {}), "sources").items():
        if lengths.get(language) != length:
            raise ValueError(f"sources.{language}: give one for each translation")
    return entry


def _checked_lists(value: Any, key: str) -> dict[str, int]:
    """The length of each language's list of strings."""
    if not isinstance(value, dict):
        raise ValueError(f'{key}: expected {{"de": ["...", ...]}}, found {value!r}')
    for language, texts in value.items():
        check_language(language)
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{key}.{language}: expected a list of strings, found {texts!r}")
    return {language: len(texts) for language, texts in value.items()}


@contextmanager
def _located(where: str) -> Iterator[None]:
    """Put ``where`` before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def write_parquet(table: AlignmentTable, handle: IO[bytes]) -> None:
    """One row a translation: word, count, spaced, language, translation, source, held_out."""
    columns = [
        pa.array(table.words).take(pa.array(table.edge_word)),
        pa.array(table.counts[table.edge_word]),
        pa.array(table.spaced[table.edge_word]),
        pa.array(table.languages).take(pa.array(table.edge_language)),
        pa.array(table.edge_text),
        pa.array(table.sources).take(pa.array(table.edge_source)),
        pa.array(table.edge_held_out),
    ]
    pq.write_table(pa.table(columns, schema=_SCHEMA), handle, compression="zstd")


def write_jsonl(table: AlignmentTable, handle: IO[str]) -> None:
    """One line a word: ``{"word", "count", "spaced", "translations": {language: [...]}, "sources", "held_out"}``."""
    for index, word in enumerate(table.words):
        edges = table.edges_of(index)
        languages = [table.languages[number] for number in table.edge_language[edges]]
        sources = [table.sources[number] for number in table.edge_source[edges]]
        entry = {
            "word": word,
            "count": int(table.counts[index]),
            "spaced": int(table.spaced[index]),
            "translations": _grouped(languages, table.edge_text[edges]),
            "sources": _grouped(languages, sources),
        }
        if table.edge_held_out[edges.start]:
            entry["held_out"] = True
        handle.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _grouped(languages: list[str], values: list[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for language, value in zip(languages, values, strict=True):
        groups.setdefault(language, []).append(value)
    return groups

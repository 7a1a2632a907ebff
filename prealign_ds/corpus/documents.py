"""Documents: reading text files of many kinds, the folders that hold a corpus, and its splits by page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prealign_ds.corpus.markup import html_text, markdown_text
from prealign_ds.files import numbered_lines, read_json
from prealign_ds.randomness import key_of, uniform

MANIFEST = "manifest.json"
FORMAT = 1
PACKED = (".gz", ".xz", ".zst")
KINDS = (".txt", ".md", ".html", ".htm", ".jsonl", ".parquet")
_PAGE_KEYS = ("page", "url", "id")
_DOCUMENT_CHARACTERS, _PAGE_CHARACTERS = 10_000, 50_000
_PIECE = re.compile(rf"\S.{{0,{_DOCUMENT_CHARACTERS - 1}}}(?!\S)|\S.{{0,{_DOCUMENT_CHARACTERS - 1}}}")  # between words


@dataclass(frozen=True)
class Document:
    """A text.

    Attributes:
        text: The text, not empty.
        page: The original page or article: documents of one page always go to one split.
        source: Where it comes from, for the record.
    """

    text: str
    page: str
    source: str = ""


def kind_of(path: Path) -> str:
    """The suffix that says how to read a file, without that of its compression; empty for an unknown one."""
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return next((kind for kind in KINDS if name.endswith(kind)), "")


def read_file(path: str | Path, text_key: str = "text") -> Iterator[Document]:
    """The documents of a file: txt, md, html, jsonl or parquet; the first four also packed as gz, xz or zst.

    A jsonl line or parquet row is a document, with its page in ``page``, ``url`` or ``id``. An html or md file is one.
    A txt file is cut between paragraphs into documents of about 10,000 characters; five in a row are a page.

    Args:
        path: The file.
        text_key: Key or column of the text.

    Raises:
        ValueError: If the file is of another kind, not UTF-8, or has a bad line, with the line's number.
    """
    path = Path(path)
    kind = kind_of(path)
    if not kind:
        raise ValueError(f"{path}: unknown kind of file; use {', '.join(KINDS)} (text also as {', '.join(PACKED)})")
    if kind == ".jsonl":
        documents = _read_jsonl(path, text_key)
    elif kind == ".parquet":
        documents = _read_parquet(path, text_key)
    elif kind == ".txt":
        documents = _read_text(path)
    else:
        text = "\n".join(line for _, line in numbered_lines(path, keep_empty=True))
        documents = iter(
            [Document((markdown_text if kind == ".md" else html_text)(text), path.name.split(".")[0], path.name)]
        )
    return (document for document in documents if document.text.strip())


def _read_jsonl(path: Path, text_key: str) -> Iterator[Document]:
    for number, line in numbered_lines(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error}); mend or remove the line") from error
        if not isinstance(record, dict) or not isinstance(record.get(text_key), str):
            raise ValueError(
                f"{path}:{number}: expected an object with a string {text_key!r}; choose the key of the text"
            )
        document = Document(
            record[text_key], _page(record, f"{path.name}:{number}"), str(record.get("source", path.name))
        )
        try:
            f"{document.text}{document.page}{document.source}".encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{path}:{number}: half a surrogate pair, which is no character; mend the line") from error
        yield document


def _read_parquet(path: Path, text_key: str) -> Iterator[Document]:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a Parquet file ({error}); fetch it again") from error
    if text_key not in file.schema_arrow.names:
        raise ValueError(f"{path}: no column {text_key!r}; it has {', '.join(file.schema_arrow.names)}")
    columns = [name for name in (text_key, *_PAGE_KEYS, "source") if name in file.schema_arrow.names]
    row = 0
    for batch in file.iter_batches(1024, columns=columns):
        for record in batch.to_pylist():
            row += 1
            page = _page(record, f"{path.name}:{row}")
            yield Document(record[text_key] or "", page, str(record.get("source") or path.name))


def _page(record: dict[str, Any], fallback: str) -> str:
    return next((str(record[key]) for key in _PAGE_KEYS if record.get(key) not in (None, "")), fallback)


def _read_text(path: Path) -> Iterator[Document]:
    lines: list[str] = []
    size = characters = 0
    for _, line in numbered_lines(path, keep_empty=True):
        for piece in [line] if len(line) <= _DOCUMENT_CHARACTERS else _PIECE.findall(line):
            # At an empty line, or in a text that has none at any line.
            if size >= (_DOCUMENT_CHARACTERS if not piece.strip() else 2 * _DOCUMENT_CHARACTERS):
                yield Document("\n".join(lines).strip(), f"{path.name}#{characters // _PAGE_CHARACTERS}", path.name)
                characters += size
                lines, size = [], 0
            lines.append(piece)
            size += len(piece) + 1
    yield Document("\n".join(lines).strip(), f"{path.name}#{characters // _PAGE_CHARACTERS}", path.name)


def parse_splits(text: str) -> dict[str, float]:
    """``train=0.9,valid=0.1`` as a mapping.

    Raises:
        ValueError: If a part is not ``name=share``, or the shares do not sum to 1.
    """
    splits: dict[str, float] = {}
    for part in text.split(","):
        found = re.fullmatch(r"\s*([\w-]+)\s*=\s*([\d.]+)\s*", part)
        if not found or found[1] in splits:
            raise ValueError(f"splits {text!r}: {part!r} is not a new NAME=SHARE; write them as train=0.9,valid=0.1")
        splits[found[1]] = float(found[2])
    return check_splits(splits)


def check_splits(splits: dict[str, float]) -> dict[str, float]:
    """Raise ValueError unless the shares are positive and sum to 1."""
    if not splits or min(splits.values()) <= 0 or not math.isclose(sum(splits.values()), 1.0, abs_tol=1e-9):
        raise ValueError(f"splits {splits}: give each a share above 0; together they make 1")
    return splits


def split_of(page: str, splits: dict[str, float], seed: int) -> str:
    """The split of a page: a pure function of (seed, page), the same on every machine and in every tool."""
    draw = uniform(key_of("split", seed, page))
    for name, share in splits.items():
        draw -= share
        if draw < 0:
            return name
    return name


class TextCorpus:
    """A folder of documents written by ``tools/fetch_corpus.py``: ``manifest.json`` and shards of JSON lines.

    Raises:
        ValueError: If the folder is not such a corpus, or a shard is missing.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not (self.path / MANIFEST).is_file():
            raise ValueError(f"{path}: no text corpus here; fetch one with tools/fetch_corpus.py")
        self.manifest: dict[str, Any] = read_json(self.path / MANIFEST)
        if self.manifest.get("format") != FORMAT or "shards" not in self.manifest:
            raise ValueError(f"{path}/{MANIFEST}: not a text corpus of format {FORMAT}; fetch it again")
        self.language: str = self.manifest["language"]
        self.splits: dict[str, float] = self.manifest["splits"]
        self.seed: int = self.manifest["seed"]
        self.shards = [self.path / shard["file"] for shard in self.manifest["shards"]]
        for shard in self.shards:
            if not shard.is_file():
                raise ValueError(f"{shard}: missing; fetch the corpus again")

    @classmethod
    def open(cls, path: str | Path) -> TextCorpus:
        """Open the corpus at ``path``."""
        return cls(path)

    def check_split(self, split: str) -> None:
        """Raise ValueError unless the corpus has this split."""
        if split not in self.splits:
            raise ValueError(f"{self.path}: no split {split!r}; it has {', '.join(self.splits)}: name one of these")

    def documents(self, split: str | None = None) -> Iterator[Document]:
        """Documents in their one order, of one split or of all.

        Raises:
            ValueError: If the corpus has no such split.
        """
        if split is not None:
            self.check_split(split)
        for document in map(document_of, self.lines()):
            if split is None or split_of(document.page, self.splits, self.seed) == split:
                yield document

    def lines(self) -> Iterator[str]:
        """The documents as they are stored, for :func:`document_of`, which is most of the work of reading them."""
        for shard in self.shards:
            for _, line in numbered_lines(shard):
                yield line


def document_of(line: str) -> Document:
    """The document of a line of a shard."""
    record = json.loads(line)
    return Document(record["text"], record["page"], record["source"])

"""Documents: reading them from files of many kinds, and the corpus folders in which they are kept.

A corpus folder holds ``manifest.json`` and ``documents-NNNNN.jsonl.zst``. The split of a document is no part of the
files: it is a function of the document's page, so that every reader finds the same one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from prealign_ds.corpus.markup import html_text, markdown_text
from prealign_ds.files import digest_of, numbered_lines, read_json, sha256_file
from prealign_ds.randomness import key_of, uniform

FORMAT = 1
PAGE_KEYS = ("page", "url", "id")
_PACKED = {".gz", ".xz", ".zst"}
_DOCUMENT_CHARACTERS = 10_000
_PAGE_CHARACTERS = 50_000
_PIECE = re.compile(rf"(?s)\S.{{0,{_DOCUMENT_CHARACTERS - 1}}}(?!\S)|\S.{{0,{_DOCUMENT_CHARACTERS - 1}}}")


@dataclass(frozen=True, slots=True)
class Document:
    """One text. Documents of the same ``page`` are never separated by a split."""

    text: str
    page: str
    source: str = ""


def read_file(path: str | Path, text_key: str = "text") -> Iterator[Document]:
    """The documents of one file; those without visible text are left out.

    ``.md`` and ``.html`` are one document each, ``.txt`` is cut at empty lines into documents of about 10,000 characters
    and pages of about 50,000, ``.jsonl`` and ``.parquet`` hold a document in each line or row. All but ``.parquet``
    may be packed as ``.gz``, ``.xz`` or ``.zst``.

    Args:
        path: The file.
        text_key: Key or column of the text in ``.jsonl`` and ``.parquet``.

    Raises:
        ValueError: If the file is of another kind or cannot be read, with the file and, where there is one, the line.
    """
    path = Path(path)
    reader = _READERS.get(_kind_of(path))
    if reader is None:
        raise ValueError(
            f"{path}: unknown kind of file; known are {', '.join(sorted(_READERS))}, and .gz .xz .zst of them"
        )
    for document in reader(path, text_key):
        if document.text.strip():
            yield document


def is_readable(path: str | Path) -> bool:
    """Whether :func:`read_file` knows this kind of file."""
    return _kind_of(Path(path)) in _READERS


def _kind_of(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _PACKED:
        suffixes.pop()
        return suffixes[-1] if suffixes and suffixes[-1] != ".parquet" else ""
    return suffixes[-1] if suffixes else ""


def _page_name(path: Path) -> str:
    """The file's name without its kind: a page and its translation, or its HTML and its Markdown, share it."""
    name = path.name[: -len(path.suffix)] if path.suffix.lower() in _PACKED else path.name
    return Path(name).stem


def _paragraphs(path: Path, limit: int | None = None) -> Iterator[list[str]]:
    """Runs of lines without an empty one between them; a run also ends when it reaches ``limit`` characters."""
    lines: list[str] = []
    size = last = 0
    for number, line in numbered_lines(path):
        if lines and (number > last + 1 or (limit is not None and size >= limit)):
            yield lines
            lines, size = [], 0
        lines.append(line)
        size += len(line)
        last = number
    if lines:
        yield lines


def _text_pieces(path: Path) -> Iterator[str]:
    """Paragraphs of a plain text file; those too long for one document are cut between words."""
    for lines in _paragraphs(path, _DOCUMENT_CHARACTERS):
        text = "\n".join(lines)
        yield from [text] if len(text) <= 2 * _DOCUMENT_CHARACTERS else _PIECE.findall(text)


def _read_txt(path: Path, text_key: str) -> Iterator[Document]:
    pending: list[str] = []
    size = page_size = page = 0
    name = _page_name(path)
    for piece in _text_pieces(path):
        pending.append(piece)
        size += len(piece)
        if size >= _DOCUMENT_CHARACTERS:
            yield Document("\n\n".join(pending), f"{name}#{page}" if page else name)
            page_size += size
            pending, size = [], 0
            if page_size >= _PAGE_CHARACTERS:
                page, page_size = page + 1, 0
    if pending:
        yield Document("\n\n".join(pending), f"{name}#{page}" if page else name)


def _read_markdown(path: Path, text_key: str) -> Iterator[Document]:
    yield Document(markdown_text(_paragraphs(path)), _page_name(path))


def _read_html(path: Path, text_key: str) -> Iterator[Document]:
    page = "\n\n".join("\n".join(lines) for lines in _paragraphs(path))
    yield Document(html_text(page), _page_name(path))


def _read_jsonl(path: Path, text_key: str) -> Iterator[Document]:
    for number, line in numbered_lines(path):
        place = f"{path}:{number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: not valid JSON ({error}); mend or remove the line") from error
        if not isinstance(record, dict):
            raise ValueError(f'{place}: a JSON object like {{"{text_key}": "..."}} is needed; mend or remove the line')
        yield document_from(record, text_key, place, f"{path.name}:{number}")


def _read_parquet(path: Path, text_key: str) -> Iterator[Document]:
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if text_key not in names:
                raise ValueError(f"{path}: no column {text_key!r}; its columns are {names}: name the one with the text")
            columns = [name for name in (text_key, *PAGE_KEYS, "source") if name in names]
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    yield document_from(record, text_key, f"{path}: row {number}", f"{path.name}:{number}")
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path}: not a readable Parquet file ({error}); fetch or write it again") from error


def document_from(record: dict[str, Any], text_key: str, place: str, page: str) -> Document:
    """A document from a record with a text and perhaps a page (``page``, ``url`` or ``id``) and a source.

    Args:
        record: The record.
        text_key: Its key of the text; a text of None counts as empty.
        place: Where the record stands, for error messages.
        page: The page of a record that names none.

    Raises:
        ValueError: If there is no text, or it cannot be written as UTF-8.
    """
    if text_key not in record:
        raise ValueError(f"{place}: no key {text_key!r}; it has {sorted(record)}: name the one with the text")
    text = "" if record[text_key] is None else record[text_key]
    if not isinstance(text, str):
        raise ValueError(f"{place}: {text_key!r} is {type(text).__name__}, not text; name the key with the text")
    page = next((str(record[key]) for key in PAGE_KEYS if record.get(key) not in (None, "")), page)
    document = Document(text, page, str(record.get("source") or ""))
    try:
        "".join((document.text, document.page, document.source)).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: half a UTF-16 surrogate pair, which is no character; mend the line") from error
    return document


_READERS: dict[str, Callable[[Path, str], Iterator[Document]]] = {
    ".txt": _read_txt,
    ".md": _read_markdown,
    ".html": _read_html,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def parse_splits(text: str) -> dict[str, float]:
    """``train=0.9,valid=0.1`` as a dictionary.

    Raises:
        ValueError: If the text is not of this form, or the shares do not sum to 1.
    """
    splits: dict[str, float] = {}
    for part in text.split(","):
        found = re.fullmatch(r"\s*([\w-]+)\s*=\s*([\d.]+(?:[eE]-?\d+)?)\s*", part)
        if found is None or found[1] in splits:
            raise ValueError(
                f"splits {text!r}: {part!r} is not a new NAME=SHARE; write for example train=0.9,valid=0.1"
            )
        splits[found[1]] = float(found[2])
    check_splits(splits)
    return splits


def check_splits(splits: dict[str, float]) -> None:
    """Raise ValueError unless there are splits, with positive shares that sum to 1."""
    if not splits or min(splits.values()) <= 0 or abs(sum(splits.values()) - 1) > 1e-9:
        shares = ",".join(f"{name}={share:g}" for name, share in splits.items())
        total = sum(splits.values())
        raise ValueError(
            f"splits {shares!r}: the shares must be positive and sum to 1, not to {total:.10g}; correct them"
        )


def split_of(page: str, splits: dict[str, float], seed: int) -> str:
    """The split of a page: drawn by a hash of the page, so that no order of documents changes it.

    Raises:
        ValueError: If the shares are not positive or do not sum to 1.
    """
    check_splits(splits)
    place = uniform(key_of("split", seed, page))
    # In the order of the names: two dictionaries that are equal mean the same splits.
    names = sorted(splits)
    for name in names:
        place -= splits[name]
        if place < 0:
            return name
    return names[-1]


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a corpus folder, of text or of tokens.

    Raises:
        ValueError: If the folder or the manifest is missing, or is of another format.
    """
    folder = Path(folder)
    if not (folder / "manifest.json").is_file():
        found = "no manifest.json in it" if folder.is_dir() else "no such folder"
        raise ValueError(f"{folder}: not a corpus ({found}); build it with tools/fetch_corpus.py or tokenize_corpus.py")
    manifest = read_json(folder / "manifest.json")
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version != FORMAT:
        raise ValueError(f"{folder}/manifest.json: format {version!r}, but this version reads {FORMAT}; build it again")
    return manifest


class TextCorpus:
    """A folder of documents, as :func:`prealign_ds.corpus.fetch.fetch` leaves it.

    Args:
        path: The folder.
        manifest: Its manifest.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path = path
        self.manifest = manifest
        self.language: str = manifest["language"]
        self.splits: dict[str, float] = manifest["splits"]
        self.seed: int = manifest["seed"]
        self.shards: list[dict[str, Any]] = manifest["shards"]
        self.digest = digest_of([self.language, self.splits, self.seed, [shard["sha256"] for shard in self.shards]])

    @classmethod
    def open(cls, path: str | Path) -> TextCorpus:
        """Open the folder ``path``.

        Raises:
            ValueError: If it is no text corpus, or files are missing.
        """
        path = Path(path)
        manifest = read_manifest(path)
        missing = [key for key in ("language", "splits", "seed", "documents", "bytes", "shards") if key not in manifest]
        if missing:
            raise ValueError(f"{path}: not a text corpus (its manifest has no {missing[0]!r}); give a fetched corpus")
        for shard in manifest["shards"]:
            if not (path / shard["file"]).is_file():
                raise ValueError(f"{path / shard['file']}: missing; delete the folder {path} and fetch it again")
        check_splits(manifest["splits"])
        return cls(path, manifest)

    def check_split(self, split: str) -> None:
        """Raise ValueError unless the corpus has this split."""
        if split not in self.splits:
            raise ValueError(f"{self.path}: no split {split!r}; it has {sorted(self.splits)}: name one of these")

    def lines(self) -> Iterator[str]:
        """All documents in order as lines of JSON, which :func:`document_of_line` reads.

        Raises:
            ValueError: If a file was changed or damaged since it was written.
        """
        for shard in self.shards:
            file = self.path / shard["file"]
            if sha256_file(file) != shard["sha256"]:
                raise ValueError(f"{file}: damaged or changed since it was fetched; delete {self.path}, fetch it again")
            for _, line in numbered_lines(file):
                yield line

    def documents(self, split: str | None = None) -> Iterator[Document]:
        """The documents of one split, or all of them, in the order in which they were fetched.

        Raises:
            ValueError: If the corpus has no such split, or a file was damaged.
        """
        if split is not None:
            self.check_split(split)
        for line in self.lines():
            document = document_of_line(line)
            if split is None or split_of(document.page, self.splits, self.seed) == split:
                yield document


def line_of_document(document: Document) -> str:
    """A document as a line of JSON, the line end included."""
    return json.dumps(asdict(document), ensure_ascii=False, separators=(",", ":")) + "\n"


def document_of_line(line: str) -> Document:
    """The document in a line of :func:`line_of_document`."""
    return Document(**json.loads(line))


def mixed_texts(corpora: Iterable[tuple[TextCorpus, float]], splits: Iterable[str], limit: int | None) -> Iterator[str]:
    """TODO."""
    return iter(())

"""Labelled text: from tab-separated, JSON-lines or Parquet files, or a data set of the Hugging Face hub."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prealign_ds.corpus.documents import PACKED
from prealign_ds.files import numbered_lines

_KINDS = (".tsv", ".jsonl", ".parquet")
_PAIR = ("premise", "hypothesis")


@dataclass(frozen=True)
class LabelledText:
    """Texts, each with a label.

    Attributes:
        source: The file or data set.
        texts: The text, or premise and hypothesis, of each.
        labels: The label of each.
        lines: The line or row of each, from 1.
    """

    source: str
    texts: list[tuple[str, ...]]
    labels: list[str]
    lines: list[int]

    def check_labels(self, known: LabelledText) -> None:
        """Raise ValueError if a label does not occur in ``known``, which is what a model is trained on."""
        names = set(known.labels)
        for label, line in zip(self.labels, self.lines, strict=True):
            if label not in names:
                raise ValueError(
                    f"{self.source}:{line}: label {label!r} does not occur in the training text {known.source}, which "
                    f"has {', '.join(sorted(names)[:20])}; train on it too, or remove the line"
                )


def read_labelled(source: str | Path) -> LabelledText:
    """Read labelled text.

    Args:
        source: A ``.tsv`` file with the lines ``label<TAB>text``; a ``.jsonl`` or ``.parquet`` file with ``label`` and
            either ``text`` or ``premise`` and ``hypothesis``; the first two also packed (gz, xz, zst); or
            ``hub:DATASET[:CONFIG[:SPLIT]]`` with such columns, by default its split ``train``.

    Raises:
        ValueError: If it cannot be read, is empty, or has a bad row, with the row's number and what was found.
    """
    texts, labels, lines = [], [], []
    for number, record in _records(str(source)):
        where = f"{source}:{number}"
        label = record.get("label")
        if isinstance(label, bool) or not isinstance(label, (str, int)) or not str(label).strip():
            raise ValueError(f"{where}: label {label!r}: expected a text or a whole number; mend or remove the row")
        names = ("text",) if record.get("text") is not None else _PAIR
        texts.append(tuple(_text(record, name, where) for name in names))
        labels.append(str(label).strip())
        lines.append(number)
    if not texts:
        raise ValueError(f"{source}: holds no labelled text; give a file with some")
    return LabelledText(str(source), texts, labels, lines)


def _text(record: dict[str, Any], name: str, where: str) -> str:
    text = record.get(name)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"{where}: {name} {text!r}: expected a text that is not empty (a row has text, or premise and hypothesis); "
            "mend or remove the row"
        )
    return text


def _records(source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows with their numbers from 1."""
    if source.startswith("hub:"):
        return _from_hub(source)
    name = source.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    readers = dict(zip(_KINDS, (_from_tsv, _from_jsonl, _from_parquet), strict=True))
    reader = readers.get(Path(name).suffix)
    if reader is None:
        raise ValueError(f"{source}: unknown kind of file; labelled text is {', '.join(_KINDS)} or hub:DATASET")
    if not Path(source).is_file():
        raise ValueError(f"{source}: no such file of labelled text")
    return reader(source)


def _from_tsv(source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in numbered_lines(source):
        fields = line.split("\t")
        if len(fields) != 2:
            raise ValueError(f"{source}:{number}: expected label<TAB>text, found {len(fields)} field(s); mend the line")
        yield number, {"label": fields[0], "text": fields[1]}


def _from_jsonl(source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in numbered_lines(source):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{source}:{number}: not JSON ({error}); mend or remove the line") from error
        if not isinstance(record, dict):
            raise ValueError(f"{source}:{number}: expected an object, found {type(record).__name__}; mend the line")
        yield number, record


def _from_parquet(source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        file = pq.ParquetFile(source)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{source}: not a Parquet file ({error}); fetch it again") from error
    rows = (row for batch in file.iter_batches(1024) for row in batch.to_pylist())
    yield from enumerate(rows, 1)


def _from_hub(source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    from datasets import load_dataset

    _, name, *rest = source.split(":")
    config, split = (rest + ["", ""])[:2]
    try:
        yield from enumerate(
            load_dataset(name, config or None, split=split or "train", token=os.environ.get("HF_TOKEN")), 1
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{source}: cannot be read ({type(error).__name__}: {error}); check its name and the network, or give files"
        ) from error

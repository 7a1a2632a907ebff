"""Word counts of a text, on all cores: what W is made of, and how its words stand in running text."""

from __future__ import annotations

import multiprocessing
import os
import re
import string
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import regex

from prealign_ds.words import WORD

_BATCH_CHARACTERS = 1 << 23
_MOST_PIECES = 1 << 20
"""Distinct pieces of text that a process keeps before it hands over their words."""
_MOST_FRESH = 1 << 23
"""Pieces of text, repeated or not, that wait to be counted together."""
_LETTERS = "a-zA-ZÀ-ÖØ-öø-ɏЀ-ҁء-ي一-龥"
"""Letters in every version of Unicode, so that Arrow and ``regex`` agree on them; others take the slower way."""
_MARKS = re.escape(string.punctuation) + "«»“”„‘’–—…،؛؟。，、：；！？（）《》"  # noqa: RUF001
_ONE_WORD = rf"^(?P<before>[{_MARKS}]*)(?P<word>[{_LETTERS}]+)(?P<behind>[{_MARKS}]*)$"
_ASCII_WORD = re.compile(r"[a-zA-Z]+(?:'[a-zA-Z]+)*|[0-9]+|[^a-zA-Z0-9]+")  # WORD, several times as fast
_SPACE = regex.compile(r"\s+")


class WordCount(NamedTuple):
    """How often a word occurs, and how many of these occurrences follow white space or begin a text."""

    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    spaced: int


def count_words(texts: Iterable[str], workers: int | None = None, minimum_count: int = 1) -> dict[str, WordCount]:
    """Count the words (:data:`prealign_ds.words.WORD`) of ``texts``, most frequent first.

    Memory grows with the number of distinct words, which all are kept until the end, and not with the text: each
    process holds a few batches of 8 million characters and as many pieces of text, half a gigabyte altogether. A text
    of one batch is counted without starting processes.

    Args:
        texts: Documents; words do not run across them.
        workers: Processes; None for one on each core that this process may use.
        minimum_count: Words that occur less often are left out.

    Raises:
        ValueError: If ``workers`` is less than 1.
    """
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers: {workers}: give 1 or more, or None for one on each core")
    total = _table([], [], [])
    for found in _counted(_batches(texts), workers):
        total = _summed([total, found])
    total = total.filter(pc.greater_equal(total["count"], minimum_count))
    total = total.sort_by([("count", "descending"), ("word", "ascending")])
    return dict(zip(total["word"].to_pylist(), map(WordCount, *_lists(total, "count", "spaced")), strict=True))


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _counted(batches: Iterator[list[str]], workers: int) -> Iterator[pa.Table]:
    """Tables that add up to the counts of all batches; at most two batches per process are under way."""
    first = list(islice(batches, 2))
    if workers == 1 or len(first) < 2:
        counter = _Counter()
        for batch in (*first, *batches):
            yield from counter.add(batch)
        yield counter.words()
        return
    pending: deque[Future[list[pa.Table]]] = deque()
    with ExitStack() as stack:
        # Pools of one process each, so that every one can be asked for the rest in the end. Spawned, not forked: the
        # caller may hold threads (PyTorch, Arrow), which a fork does not survive in all cases.
        spawn = multiprocessing.get_context("spawn")
        pools = [stack.enter_context(ProcessPoolExecutor(1, spawn, initializer=_start_counter)) for _ in range(workers)]
        for number, batch in enumerate((*first, *batches)):
            if len(pending) >= 2 * workers:
                yield from pending.popleft().result()
            pending.append(pools[number % workers].submit(_add, batch))
        pending.extend(pool.submit(_rest) for pool in pools)
        while pending:
            yield from pending.popleft().result()


class _Counter:
    """Counts pieces of text between ASCII white space, which is fast, and finds the words in each distinct one once."""

    def __init__(self) -> None:
        self._pieces = _no_pieces()
        self._fresh: list[pa.Table] = []

    def add(self, texts: list[str]) -> list[pa.Table]:
        """Count a batch; hands over all words counted so far where there are too many pieces to keep."""
        self._fresh.append(_pieces(texts))
        if sum(map(len, self._fresh)) < _MOST_FRESH:
            return []
        self._merge()
        return [self.words()] if len(self._pieces) >= _MOST_PIECES else []

    def _merge(self) -> None:
        self._pieces, self._fresh = _summed([self._pieces, *self._fresh]), []

    def words(self) -> pa.Table:
        """The words counted so far, which are forgotten then."""
        self._merge()
        pieces, self._pieces = self._pieces, _no_pieces()
        parts = pc.extract_regex(pieces["piece"], _ONE_WORD)
        simple = parts.is_valid()
        before, word, behind = (pc.struct_field(parts.filter(simple), name) for name in ("before", "word", "behind"))
        count = pieces["count"].filter(simple)
        first = pc.equal(before, "")
        words = [
            pa.table({"word": word, "count": count, "spaced": pc.if_else(first, count, 0)}),
            pa.table({"word": before, "count": count, "spaced": count}).filter(pc.invert(first)),
            pa.table({"word": behind, "count": count, "spaced": pc.multiply(count, 0)}).filter(
                pc.not_equal(behind, "")
            ),
        ]
        return _summed([*words, _words_of_any(pieces.filter(pc.invert(simple)))])


def _words_of_any(pieces: pa.Table) -> pa.Table:
    counts: dict[str, int] = {}
    spaced: dict[str, int] = {}
    for piece, count in zip(*_lists(pieces, "piece", "count"), strict=True):
        if piece.isascii():
            found = [_ASCII_WORD.findall(piece)] if piece else []
        else:
            found = list(filter(None, map(WORD.findall, _SPACE.split(piece))))
        for words in found:
            for word in words:
                counts[word] = counts.get(word, 0) + count
            spaced[words[0]] = spaced.get(words[0], 0) + count
    return _table(list(counts), list(counts.values()), [spaced.get(word, 0) for word in counts])


def _table(words: list[str], counts: list[int], spaced: list[int]) -> pa.Table:
    columns = [pa.array(words, pa.string()), pa.array(counts, pa.int64()), pa.array(spaced, pa.int64())]
    return pa.table(columns, ["word", "count", "spaced"])


def _no_pieces() -> pa.Table:
    return pa.table({"piece": pa.array([], pa.string()), "count": pa.array([], pa.int64())})


def _summed(tables: list[pa.Table]) -> pa.Table:
    """One row for each value of the first column, with the sums of the others."""
    key, *numbers = tables[0].column_names
    groups = pa.concat_tables(tables).group_by(key, use_threads=False)
    return groups.aggregate([(name, "sum") for name in numbers]).rename_columns([key, *numbers])


def _lists(table: pa.Table, *columns: str) -> Iterator[list]:
    return (table[name].to_pylist() for name in columns)


def _pieces(texts: list[str]) -> pa.Table:
    """The pieces of text between ASCII white space, each with a count of 1."""
    try:
        together = pa.array(texts, type=pa.large_string())
    except UnicodeEncodeError:  # half of a surrogate pair, from a broken escape
        texts = [text.encode(errors="replace").decode() for text in texts]
        together = pa.array(texts, type=pa.large_string())
    found = pc.ascii_split_whitespace(together).values.cast(pa.string())  # which Arrow groups several times as fast
    return pa.table({"piece": found, "count": np.ones(len(found), dtype=np.int64)})


_counter: _Counter


def _start_counter() -> None:
    global _counter
    _counter = _Counter()


def _add(texts: list[str]) -> list[pa.Table]:
    return _counter.add(texts)


def _rest() -> list[pa.Table]:
    return [_counter.words()]

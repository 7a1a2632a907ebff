"""Word counts of a text, on all cores: what W is made of, and how its words stand in running text."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from typing import NamedTuple

import regex

from prealign_ds.words import WORD

_BATCH_CHARACTERS = 1 << 23
_SPACE = regex.compile(r"\s+")
# The only characters that str.split() takes for white space and Unicode (hence WORD) does not.
_SEPARATORS = regex.compile("[\x1c-\x1f]")


class WordCount(NamedTuple):
    """How often a word occurs, and how many of these occurrences follow white space or begin a text."""

    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    spaced: int


def count_words(texts: Iterable[str], workers: int | None = None, minimum_count: int = 1) -> dict[str, WordCount]:
    """Count the words (:data:`prealign_ds.words.WORD`) of ``texts``, most frequent first.

    Memory grows with the number of distinct words, which all are kept until the end, and not with the text: each
    process holds a few batches of 8 million characters. A text of one batch is counted without starting processes.

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
    counts: Counter[str] = Counter()
    spaced: Counter[str] = Counter()
    for batch_counts, batch_spaced in _counted(_batches(texts), workers):
        counts.update(batch_counts)
        spaced.update(batch_spaced)
    kept = [(word, count) for word, count in counts.items() if count >= minimum_count]
    kept.sort(key=lambda item: (-item[1], item[0]))
    return {word: WordCount(count, spaced[word]) for word, count in kept}


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


def _counted(batches: Iterator[list[str]], workers: int) -> Iterator[tuple[Counter[str], Counter[str]]]:
    """The counts of every batch, in order; at most two batches per process are under way."""
    first = list(islice(batches, 2))
    if workers == 1 or len(first) < 2:
        yield from map(_count_batch, first)
        yield from map(_count_batch, batches)
        return
    # Spawned, not forked: the caller may hold threads (PyTorch, Arrow), which a fork does not survive in all cases.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        pending: deque[Future[tuple[Counter[str], Counter[str]]]] = deque(pool.submit(_count_batch, b) for b in first)
        del first
        for batch in batches:
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
            pending.append(pool.submit(_count_batch, batch))
        while pending:
            yield pending.popleft().result()


def _count_batch(texts: list[str]) -> tuple[Counter[str], Counter[str]]:
    """Counts and spaced counts of one batch.

    Words do not run across white space. So the text is cut at white space, which is fast, and the slower word pattern
    reads each distinct piece once, however often it occurs.
    """
    pieces: Counter[str] = Counter()
    for text in texts:
        pieces.update(_SPACE.split(text) if _SEPARATORS.search(text) else text.split())
    del pieces[""]
    counts: Counter[str] = Counter()
    spaced: Counter[str] = Counter()
    for piece, count in pieces.items():
        words = WORD.findall(piece)
        spaced[words[0]] += count
        for word in words:
            counts[word] += count
    return counts, spaced

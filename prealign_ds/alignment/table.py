"""The alignment table: W, the words of the source language, and T(w), their translations (paper section 3.1)."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from prealign_ds.alignment.columns import Columns, read_jsonl, read_parquet, write_jsonl, write_parquet
from prealign_ds.alignment.counting import WordCount
from prealign_ds.alignment.sources import Pair
from prealign_ds.corpus.clone import CLONE_LANGUAGE
from prealign_ds.files import atomic_write
from prealign_ds.languages import check_language
from prealign_ds.randomness import key_of, uniform


@dataclass(eq=False, repr=False)
class AlignmentTable:
    """Words and their translations, many to many, in columns: word i's translations are ``edges_of(i)``.

    Made by :meth:`from_pairs`, :meth:`clone` or :meth:`load`. Every word has a translation.

    Attributes:
        words: W, distinct, the most frequent first (then by code points).
        counts: int64 (W,), running words of the training text that :meth:`lookup` finds this word for; 0 if unknown.
        spaced: int64 (W,), how many of these follow white space or begin a document.
        languages: Sorted.
        sources: Names of the dictionaries, sorted.
        edge_word: int64 (n,), place in ``words``, ascending.
        edge_language: int16 (n,), place in ``languages``, ascending within a word.
        edge_text: The n translations, best first within a word and language.
        edge_source: int32 (n,), place in ``sources``.
        edge_held_out: bool (n,), pairs kept out of training for evaluation: all those of a word, or none.
        dropped: Pairs that :meth:`from_pairs` left out, by reason.
    """

    words: list[str]
    counts: np.ndarray
    spaced: np.ndarray
    languages: list[str]
    sources: list[str]
    edge_word: np.ndarray
    edge_language: np.ndarray
    edge_text: list[str]
    edge_source: np.ndarray
    edge_held_out: np.ndarray
    dropped: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Index the words and their edges."""
        self._place = {word: place for place, word in enumerate(self.words)}
        self._offsets = np.searchsorted(self.edge_word, np.arange(len(self.words) + 1))

    @classmethod
    def from_pairs(
        cls, counts: Mapping[str, WordCount] | None, pairs: Iterable[Pair], minimum_count: int = 1
    ) -> AlignmentTable:
        """Build the table of the words that a corpus counts, or of all words of ``pairs``.

        A dictionary word that the corpus counts in its very form is an entry in that form, any other one in lower
        case. A running word counts for the entry that :meth:`lookup` finds: with the entry ``piano`` alone, ``Piano``
        counts for it; an entry ``Polish`` of its own takes its occurrences from ``polish``.

        Args:
            counts: Word counts of the training text; None takes every pair.
            pairs: Best translation of a word first. Left out, and counted in ``dropped``: words that are
                ``not_in_corpus``, ``duplicate`` pairs, and translations ``identical`` to the word.
            minimum_count: Entries that occur less often are ``not_in_corpus``.

        Raises:
            ValueError: If no pair is left, or one has a bad language.
        """
        columns = Columns()
        dropped: Counter[str] = Counter()
        known = counts or {}
        lowered = {lower for word in known if (lower := word.lower()) not in known}
        for word, language, text, source in pairs:
            form = word if counts is None or word in known else word.lower()
            if counts is not None and form not in known and form not in lowered:
                dropped["not_in_corpus"] += 1
            elif text in (word, form) and language != CLONE_LANGUAGE:
                dropped["identical"] += 1
            else:
                columns.add(form, language, text, source)
        totals, spaced = _entry_counts(columns.words, known)
        edges = columns.edges
        kept = edges if counts is None else edges[:, totals[edges[0]] >= minimum_count]
        dropped["not_in_corpus"] += edges.shape[1] - kept.shape[1]
        table = cls._of(columns.names, kept, totals, spaced, np.zeros(len(totals), dtype=bool))
        dropped["duplicate"] = kept.shape[1] - len(table.edge_text)
        return replace(table, dropped=dict(dropped))

    @classmethod
    def clone(cls, counts: Mapping[str, WordCount], minimum_count: int = 2) -> AlignmentTable:
        """The En-Clone table: every counted word, punctuation and digits too, is translated by itself.

        Raises:
            ValueError: If no word occurs ``minimum_count`` times.
        """
        kept = {word: count for word, count in counts.items() if count.count >= minimum_count}
        return cls.from_pairs(kept, (Pair(word, CLONE_LANGUAGE, word, CLONE_LANGUAGE) for word in kept))

    @classmethod
    def _of(
        cls, names: list[list[str]], edges: np.ndarray, counts: np.ndarray, spaced: np.ndarray, held_out: np.ndarray
    ) -> AlignmentTable:
        """The table of :class:`Columns`' names and edges, in its one order, without duplicates and unused names.

        The last three arguments run beside the words.
        """
        if not edges.size:
            raise ValueError("no translations are left for the alignment table; check the dictionaries and the corpus")
        words, codes, texts, dictionaries = names
        for code in codes:
            check_language(code)
        old = np.array(sorted(np.unique(edges[0]).tolist(), key=words.__getitem__))
        old = old[np.argsort(-counts[old], kind="stable")]
        place = np.zeros(len(words), dtype=np.int64)
        place[old] = np.arange(len(old))
        word = place[edges[0]]
        languages, language = _sorted_names(codes, edges[1])
        groups = np.lexsort((edges[2], language, word))  # stable: the first of equal pairs stays first
        keys = np.stack([word, language, edges[2]])[:, groups]
        first = groups[np.append(True, (keys[:, 1:] != keys[:, :-1]).any(0))]
        order = first[np.lexsort((first, language[first], word[first]))]
        sources, source = _sorted_names(dictionaries, edges[3][order])
        return cls(
            words=[words[number] for number in old.tolist()],
            counts=counts[old],
            spaced=spaced[old],
            languages=languages,
            sources=sources,
            edge_word=word[order],
            edge_language=language[order].astype(np.int16),
            edge_text=[texts[number] for number in edges[2][order].tolist()],
            edge_source=source.astype(np.int32),
            edge_held_out=held_out[edges[0][order]],
        )

    def edges_of(self, place: int) -> slice:
        """Where the translations of word ``place`` stand in the edge columns."""
        return slice(int(self._offsets[place]), int(self._offsets[place + 1]))

    def lookup(self, word: str) -> int | None:
        """The place of the entry for a running word: its exact form, else its lower-cased form, else None."""
        place = self._place.get(word)
        return self._place.get(word.lower()) if place is None else place

    def translations(self, word: str, include_held_out: bool = False) -> dict[str, tuple[str, ...]]:
        """The translations of the entry ``word`` (its exact form) by language, best first."""
        place = self._place.get(word)
        found: dict[str, tuple[str, ...]] = {}
        if place is not None:
            edges = self.edges_of(place)
            for edge in range(edges.start, edges.stop):
                if include_held_out or not self.edge_held_out[edge]:
                    language = self.languages[self.edge_language[edge]]
                    found[language] = (*found.get(language, ()), self.edge_text[edge])
        return found

    def top(self, share: float) -> AlignmentTable:
        """The table of the most frequent ``share`` of W by types, rounded up (the paper's beta).

        Raises:
            ValueError: If ``share`` is not above 0 and at most 1.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share of the most frequent words: {share}: give a number above 0, at most 1")
        size = math.ceil(share * len(self.words) - 1e-9)
        end = int(self._offsets[size])
        return replace(
            self,
            words=self.words[:size],
            counts=self.counts[:size],
            spaced=self.spaced[:size],
            edge_word=self.edge_word[:end],
            edge_language=self.edge_language[:end],
            edge_text=self.edge_text[:end],
            edge_source=self.edge_source[:end],
            edge_held_out=self.edge_held_out[:end],
        )

    def hold_out(self, share: float, seed: int) -> AlignmentTable:
        """Mark all translations of about ``share`` of the words as held out for evaluation, beside those that are.

        They leave :meth:`translations` but stay in the edge columns, so that the loss can mask them. The draw of a word
        depends on (seed, lower-cased word) alone: forms that differ in case go together, in every table.

        Raises:
            ValueError: If ``share`` is not 0 or more and below 1.
        """
        if not 0 <= share < 1:
            raise ValueError(f"share of held-out words: {share}: give a number of at least 0, below 1")
        drawn = np.array([uniform(key_of("hold_out", seed, word.lower())) < share for word in self.words])
        return replace(self, edge_held_out=self.edge_held_out | drawn[self.edge_word])

    def merge(self, other: AlignmentTable) -> AlignmentTable:
        """Both tables' translations, this one's first; counts, of one corpus, are the greater ones.

        A word that one table holds out is held out. The tables should have their words in the same forms: an entry
        ``Piano`` of one hides the other's ``piano`` from :meth:`lookup`.
        """
        columns = Columns()
        for table in (self, other):
            numbers = np.arange(len(table.edge_text))
            columns.extend(
                (table.words, table.languages, table.edge_text, table.sources),
                np.stack([table.edge_word, table.edge_language, numbers, table.edge_source]),
            )
        counts, spaced, held_out = np.zeros((3, len(columns.words)), dtype=np.int64)
        for table in (self, other):
            places = np.array([columns.words[word] for word in table.words])
            greater = table.counts > counts[places]
            counts[places[greater]] = table.counts[greater]
            spaced[places[greater]] = table.spaced[greater]
            held_out[places[table.edge_word[table.edge_held_out]]] = 1
        return self._of(columns.names, columns.edges, counts, spaced, held_out.astype(bool))

    def digest(self) -> str:
        """A hash of all that decides a run: everything but the sources."""
        digest = hashlib.sha256()
        for names in (self.words, self.languages, self.edge_text):
            digest.update(json.dumps(names).encode())
        for numbers in (self.counts, self.spaced, self.edge_word, self.edge_language, self.edge_held_out):
            digest.update(numbers.astype("<i8").tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the table to a ``.parquet`` or ``.jsonl`` file, atomically.

        Raises:
            ValueError: If the suffix is another one.
        """
        if table_suffix(path) == ".parquet":
            with atomic_write(path, "wb") as handle:
                write_parquet(self, handle)
        else:
            with atomic_write(path) as handle:
                write_jsonl(self, handle)

    @classmethod
    def load(cls, path: str | Path) -> AlignmentTable:
        """Read a table that :meth:`save` wrote, or a JSONL file with ``word`` and ``translations`` in every line.

        Raises:
            ValueError: If it has no translations or is not such a file, with the line or row.
        """
        found = (read_parquet if table_suffix(path) == ".parquet" else read_jsonl)(Path(path))
        if not found.edges.size:
            raise ValueError(f"{path}: holds no translations; build the table again")
        return cls._of(*found)


def table_suffix(path: str | Path) -> str:
    """The suffix of a table's file, which decides its format.

    Raises:
        ValueError: If it is neither ``.parquet`` nor ``.jsonl``.
    """
    suffix = Path(path).suffix
    if suffix not in (".parquet", ".jsonl"):
        raise ValueError(f"{path}: alignment tables are .parquet or .jsonl files; name it so")
    return suffix


def _entry_counts(entries: Mapping[str, int], counts: Mapping[str, WordCount]) -> tuple[np.ndarray, np.ndarray]:
    """Counts and spaced counts of the running words that each entry stands for (the rule of ``lookup``)."""
    totals, spaced = np.zeros((2, len(entries)), dtype=np.int64)
    for word, count in counts.items():
        place = entries.get(word)
        place = entries.get(word.lower()) if place is None else place
        if place is not None:
            totals[place] += count.count
            spaced[place] += count.spaced
    return totals, spaced


def _sorted_names(names: list[str], numbers: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The names in use, sorted, and the numbers that they have then."""
    used = sorted(np.unique(numbers).tolist(), key=names.__getitem__)
    place = np.zeros(len(names), dtype=np.int64)
    place[used] = np.arange(len(used))
    return [names[number] for number in used], place[numbers]

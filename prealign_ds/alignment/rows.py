"""Rows: the distinct token sequences that words and translations are encoded as, and the graph of translations on them.

Two words with the same tokens are one row; a translation is an edge between rows. The graph of the FULL table decides
what is a positive, whichever entry brought a row into a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerFast

from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.corpus.clone import CLONE_LANGUAGE, clone_ids
from prealign_ds.corpus.tokenizer import FragmentEncoder

UNSPACED_LANGUAGES = frozenset({"zh", "ja", "th", "lo", "km", "my", "bo", "dz"})
"""Languages written without spaces: words stand bare in running text, the spaced form is a second row."""

_MINOR_FORM = 0.1


@dataclass(frozen=True)
class Graph:
    """Neighbours of every row in compressed form: those of row i are ``targets[offsets[i]:offsets[i + 1]]``, sorted."""

    offsets: np.ndarray
    targets: np.ndarray

    @classmethod
    def from_pairs(cls, pairs: np.ndarray, size: int) -> Graph:
        """Undirected graph on ``size`` rows from pairs of shape (n, 2); duplicates count once."""
        both = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)
        return cls(np.searchsorted(both[:, 0], np.arange(size + 1)), both[:, 1])

    def neighbours(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All edges that leave ``rows``: (places in ``rows``, neighbouring rows)."""
        begins, ends = self.offsets[rows], self.offsets[rows + 1]
        return np.repeat(np.arange(len(rows)), ends - begins), self.targets[expand_ranges(begins, ends)]


def expand_ranges(begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The integers of all ranges ``begins[i]:ends[i]``, one after the other."""
    lengths = ends - begins
    return np.arange(lengths.sum()) + np.repeat(begins - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)


class TableRows:
    """The alignment table as encoded rows.

    Args:
        table: The alignment table.
        tokenizer: Encodes the words as they stand in running text, alone, without special tokens.
        positives: ``edges``: a word and each translation are positives of each other. ``entry``: all rows of one table
            entry are (as in the authors' code).

    Attributes:
        tokens, offsets: Row i is ``tokens[offsets[i]:offsets[i + 1]]``.
        pairs: int64 (n, 2), source row and translation row.
        pair_edge: int64 (n,), the table edge behind each pair, ascending.
        num_identical: Pairs dropped because both sides have the same tokens.
        num_unspellable: Words or translations that the tokenizer cannot spell exactly.

    Raises:
        ValueError: If no pair is left to align.
    """

    def __init__(
        self,
        table: AlignmentTable,
        tokenizer: PreTrainedTokenizerFast,
        positives: Literal["edges", "entry"] = "edges",
    ):
        self._encode = FragmentEncoder(tokenizer)
        self._clone_ids = clone_ids(tokenizer)
        self._known: dict[bytes, int] = {}
        self._lengths: list[int] = []
        self.num_identical = self.num_unspellable = 0
        self.pairs, self.pair_edge = self._build(table)
        self.tokens = np.frombuffer(b"".join(self._known), dtype=np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self._lengths)])
        if not len(self.pairs):
            raise ValueError("the alignment table has no pair whose two sides differ in tokens; check table.path")
        held_out = table.edge_held_out[self.pair_edge]
        self.edge_word = table.edge_word
        self.edge_language = table.edge_language
        self.edge_held_out = table.edge_held_out
        size = len(self._lengths)
        linked = self._entry_pairs(table) if positives == "entry" else self.pairs[~held_out]
        self.positives = Graph.from_pairs(linked, size)
        self.all_pairs = Graph.from_pairs(np.concatenate([linked, self.pairs[held_out]]), size)
        self.trained_words = np.unique(table.edge_word[self.pair_edge[~held_out]])

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._lengths)

    def _row(self, ids: np.ndarray | None) -> int | None:
        if ids is None:
            self.num_unspellable += 1
            return None
        key = ids.tobytes()
        if key not in self._known:
            self._known[key] = len(self._known)
            self._lengths.append(len(ids))
        return self._known[key]

    def _build(self, table: AlignmentTable) -> tuple[np.ndarray, np.ndarray]:
        spaced = self._encode([" " + word for word in table.words])
        bare = self._encode(table.words)
        texts = list(table.edge_text)
        spaced_texts = self._encode([" " + text for text in texts])
        bare_texts = self._encode(texts)
        is_clone = np.array([language == CLONE_LANGUAGE for language in table.languages])
        is_unspaced = np.array([language.split("-")[0] in UNSPACED_LANGUAGES for language in table.languages])
        pairs, edges = [], []
        for edge, (word, language) in enumerate(
            zip(table.edge_word.tolist(), table.edge_language.tolist(), strict=True)
        ):
            forms = _forms(spaced[word], bare[word], int(table.counts[word]), int(table.spaced[word]))
            if is_clone[language]:
                found = [(ids, None if ids is None else self._clone_ids[ids]) for ids in forms]
            else:
                sides = [bare_texts[edge], spaced_texts[edge]] if is_unspaced[language] else [spaced_texts[edge]]
                found = [(forms[0], ids) for ids in sides]
            for source_ids, target_ids in found:
                source, target = self._row(source_ids), self._row(target_ids)
                if source is not None and target is not None and source != target:
                    pairs.append((source, target))
                    edges.append(edge)
                elif source is not None and source == target:
                    self.num_identical += 1
        return np.array(pairs, dtype=np.int64).reshape(-1, 2), np.array(edges, dtype=np.int64)

    def _entry_pairs(self, table: AlignmentTable) -> np.ndarray:
        """All pairs of rows that one table entry holds, held-out edges aside."""
        kept = ~table.edge_held_out[self.pair_edge]
        words = table.edge_word[self.pair_edge[kept]]
        pairs = self.pairs[kept]
        combined = [pairs]
        for group in np.split(pairs, np.flatnonzero(np.diff(words)) + 1):
            rows = np.unique(group)
            first, second = np.triu_indices(len(rows), 1)
            combined.append(np.stack([rows[first], rows[second]], 1))
        return np.concatenate(combined)


def _forms(spaced: np.ndarray | None, bare: np.ndarray | None, count: int, num_spaced: int) -> list[np.ndarray | None]:
    """How a source word stands in running text, the commoner form first; a form below 10 % is left out."""
    share = num_spaced / count if count else 1.0
    ranked = [(share, spaced), (1 - share, bare)]
    if share < 0.5:
        ranked.reverse()
    return [ids for part, ids in ranked if part >= _MINOR_FORM]

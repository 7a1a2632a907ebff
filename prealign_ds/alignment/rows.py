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
from prealign_ds.languages import UNSPACED, base_of

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
        num_unspellable: Translations dropped because the tokenizer cannot spell them, or their word, exactly.

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
        self.languages = table.languages
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

    def padded(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of ``rows``, padded on the right with 0, and their mask; int64 of shape (rows, longest)."""
        begins, ends = self.offsets[rows], self.offsets[rows + 1]
        lengths = ends - begins
        mask = np.arange(lengths.max()) < lengths[:, None]
        input_ids = np.zeros(mask.shape, dtype=np.int64)
        input_ids[mask] = self.tokens[expand_ranges(begins, ends)]
        return input_ids, mask.astype(np.int64)

    def _row(self, ids: np.ndarray) -> int:
        key = ids.tobytes()
        if key not in self._known:
            self._known[key] = len(self._known)
            self._lengths.append(len(ids))
        return self._known[key]

    def _build(self, table: AlignmentTable) -> tuple[np.ndarray, np.ndarray]:
        share = np.where(table.counts > 0, table.spaced / np.maximum(table.counts, 1), 1.0)
        spaced = self._encode_some([" " + word for word in table.words], share >= _MINOR_FORM)
        bare = self._encode_some(table.words, 1 - share >= _MINOR_FORM)
        is_clone = np.array([language == CLONE_LANGUAGE for language in table.languages])[table.edge_language]
        is_unspaced = np.array([base_of(language) in UNSPACED for language in table.languages])
        is_unspaced = is_unspaced[table.edge_language]
        spaced_texts = self._encode_some([" " + text for text in table.edge_text], ~is_clone)
        bare_texts = self._encode_some(table.edge_text, is_unspaced)
        pairs, edges = [], []
        for edge, word in enumerate(table.edge_word.tolist()):
            # How the source word stands in running text, the commoner form first; a form below 10 % is left out.
            forms = [spaced[word], bare[word]] if share[word] >= 0.5 else [bare[word], spaced[word]]
            if is_clone[edge]:
                found = [(ids, self._clone_ids[ids]) for ids in forms if ids is not None]
            else:
                sides = [bare_texts[edge], spaced_texts[edge]] if is_unspaced[edge] else [spaced_texts[edge]]
                found = [(forms[0], ids) for ids in sides if forms[0] is not None and ids is not None]
            self.num_unspellable += not found
            for source, target in ((self._row(source), self._row(target)) for source, target in found):
                if source == target:
                    self.num_identical += 1
                else:
                    pairs.append((source, target))
                    edges.append(edge)
        return np.array(pairs, dtype=np.int64).reshape(-1, 2), np.array(edges, dtype=np.int64)

    def _encode_some(self, texts: list[str], wanted: np.ndarray) -> list[np.ndarray | None]:
        """Token ids of the wanted texts; None for the others, and for what the tokenizer cannot spell."""
        encoded: list[np.ndarray | None] = [None] * len(texts)
        places = np.flatnonzero(wanted).tolist()
        for place, ids in zip(places, self._encode([texts[place] for place in places]), strict=True):
            encoded[place] = ids
        return encoded

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

"""Word batches of stage 1: pure functions of (seed, step), built whole and then shared out over the ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prealign_ds.alignment.rows import TableRows, expand_ranges
from prealign_ds.randomness import KeyedPermutation, key_of, mix_array


@dataclass
class WordBatch:
    """One rank's share of a global word batch; R rows in all, r of them here.

    Attributes:
        input_ids_rT: int64, the rows' tokens, padded on the right.
        mask_rT: int64, 1 for tokens and 0 for padding.
        groups: Neighbouring rows of similar length as (first row, row after the last, longest length), so that little
            padding is encoded; as many groups on every rank, because under ZeRO-3 each forward is collective.
        counts: Rows of every rank, in rank order; they sum to R.
        positives: Two int64 tensors of shape (P,): anchor (place among the r, ascending) and positive (place among the
            R). Each pair once; over the ranks, symmetric.
        num_positives_R: int64, positives of each row of the GLOBAL batch.
        excluded: In the same form, pairs that are neither positive nor negative: a row and itself, rows that only share
            a neighbour, and held-out translations.
        num_anchors: Rows of the GLOBAL batch that have a positive.
        num_positives: Positive pairs (both directions) of the GLOBAL batch.
    """

    input_ids_rT: Tensor
    mask_rT: Tensor
    groups: list[tuple[int, int, int]]
    counts: list[int]
    positives: tuple[Tensor, Tensor]
    num_positives_R: Tensor
    excluded: tuple[Tensor, Tensor]
    num_anchors: int
    num_positives: int

    def to(self, device: torch.device | str) -> WordBatch:
        """The same batch on another device."""
        moved = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        pairs = {
            name: (rows.to(device, non_blocking=True), columns.to(device, non_blocking=True))
            for name, (rows, columns) in (("positives", self.positives), ("excluded", self.excluded))
        }
        return WordBatch(**{**vars(self), **moved, **pairs})


_GROUP_ENDS = (0.5, 0.85, 1.0)
"""Shares of the rows, by length, at which a group ends: most words have few tokens, a few have many."""


class WordBatches:
    """Draws word batches from shuffled epochs over W.

    Args:
        rows: The encoded table.
        words_per_step: Source entries in a GLOBAL batch.
        translations_per_language: At most this many translations of an entry in each language, drawn for each step.
        seed: Decides the order of W and the draws.
        language_weights: Probability that an entry's translations in a language take part in a step; 1 if not given.

    Raises:
        ValueError: If a step would hold no words, or a weight is of a language that the table does not have.
    """

    def __init__(
        self,
        rows: TableRows,
        words_per_step: int,
        translations_per_language: int,
        seed: int,
        language_weights: Mapping[str, float] | None = None,
    ):
        if words_per_step < 1 or translations_per_language < 1:
            raise ValueError("align.words_per_step and align.translations_per_language: give 1 or more")
        self.rows = rows
        self.words_per_step = words_per_step
        self.translations_per_language = translations_per_language
        self.seed = seed
        weights = dict(language_weights or {})
        if unknown := sorted(weights.keys() - set(rows.languages)):
            raise ValueError(f"align.language_weights: {unknown} are not of the table's languages {rows.languages}")
        self._weights = np.array([weights.get(language, 1.0) for language in rows.languages])

    def entries(self, step: int) -> np.ndarray:
        """The distinct table words of a step, ascending."""
        size = len(self.rows.trained_words)
        first = step * self.words_per_step
        places = []
        for epoch in range(first // size, (first + self.words_per_step - 1) // size + 1):
            order = KeyedPermutation(size, key_of("words", self.seed, epoch))
            low = max(first - epoch * size, 0)
            high = min(first + self.words_per_step - epoch * size, size)
            places += [order(place) for place in range(low, high)]
        return np.unique(self.rows.trained_words[places])

    def row_ids(self, step: int) -> np.ndarray:
        """The distinct rows of a step's global batch, ascending."""
        rows, words = self.rows, self.entries(step)
        begins = np.searchsorted(rows.edge_word, words, side="left")
        edges = expand_ranges(begins, np.searchsorted(rows.edge_word, words, side="right"))
        edges = edges[~rows.edge_held_out[edges] & self._takes_part(step, edges)]
        draws = mix_array(edges.astype(np.uint64) ^ np.uint64(key_of("translations", self.seed, step)))
        order = np.lexsort((draws, rows.edge_language[edges], rows.edge_word[edges]))
        edges = edges[order]
        groups = np.stack([rows.edge_word[edges], rows.edge_language[edges]])
        fresh = np.concatenate([[True], (groups[:, 1:] != groups[:, :-1]).any(0)])
        places = np.arange(len(edges))
        rank = places - np.maximum.accumulate(np.where(fresh, places, 0))
        chosen = np.sort(edges[rank < self.translations_per_language])
        pairs = expand_ranges(
            np.searchsorted(rows.pair_edge, chosen, side="left"), np.searchsorted(rows.pair_edge, chosen, side="right")
        )
        return np.unique(rows.pairs[pairs])

    def _takes_part(self, step: int, edges: np.ndarray) -> np.ndarray:
        """Whether the language of each edge is drawn for its word in this step: bool, as many as edges."""
        language = self.rows.edge_language[edges].astype(np.int64)
        if (self._weights == 1).all():
            return np.ones(len(edges), dtype=bool)
        groups = (self.rows.edge_word[edges] * len(self._weights) + language).astype(np.uint64)
        draws = mix_array(groups ^ np.uint64(key_of("languages", self.seed, step)))
        return (draws >> np.uint64(11)) * 2.0**-53 < self._weights[language]

    def batch(self, step: int, rank: int = 0, world: int = 1) -> WordBatch:
        """The share of ``rank`` in step ``step``'s batch; the shares of all ranks, one after the other, make the whole.

        Rows are dealt to the ranks by length, so that all have the same work, and are in order of length on each.

        Raises:
            ValueError: If there are fewer rows than ranks.
        """
        return self._share(self.row_ids(step), rank, world)

    def largest(self, rank: int = 0, world: int = 1) -> WordBatch:
        """The share of ``rank`` in a batch of the longest pairs, with as many rows as a step has."""
        rows = self.rows
        lengths = np.diff(rows.offsets)[rows.pairs].sum(1)
        longest = np.argsort(-lengths, kind="stable")[: max(1, len(self.row_ids(0)) // 2)]
        return self._share(np.unique(rows.pairs[longest]), rank, world)

    def _share(self, ids: np.ndarray, rank: int, world: int) -> WordBatch:
        by_length = ids[np.argsort(self.rows.offsets[ids + 1] - self.rows.offsets[ids], kind="stable")]
        shares = [by_length[other::world] for other in range(world)]
        counts = [len(share) for share in shares]
        if min(counts) == 0:
            raise ValueError(f"align.words_per_step: {len(ids)} rows cannot be shared by {world} ranks; raise it")
        own, low = shares[rank], sum(counts[:rank])
        columns = _Places(np.concatenate(shares))
        all_anchors, all_targets = columns.of_edges(*self.rows.positives.neighbours(columns.ids))
        number = np.bincount(all_anchors, minlength=len(ids))
        anchors, positives = columns.of_edges(*self.rows.positives.neighbours(own))
        excluded = self._excluded(own, columns, low, anchors * len(ids) + positives)
        input_ids, mask = self.rows.padded(own)
        ends = [0, *(round(share * len(own)) for share in (_GROUP_ENDS if min(counts) >= 4 else _GROUP_ENDS[-1:]))]
        return WordBatch(
            input_ids_rT=torch.from_numpy(input_ids),
            mask_rT=torch.from_numpy(mask),
            groups=[(a, b, int(mask[b - 1].sum())) for a, b in zip(ends, ends[1:], strict=False)],
            counts=counts,
            positives=(torch.from_numpy(anchors), torch.from_numpy(positives)),
            num_positives_R=torch.from_numpy(number),
            excluded=(torch.from_numpy(excluded // len(ids)), torch.from_numpy(excluded % len(ids))),
            num_anchors=int((number > 0).sum()),
            num_positives=len(all_targets),
        )

    def _excluded(self, own: np.ndarray, columns: _Places, low: int, positives: np.ndarray) -> np.ndarray:
        """Pairs of a row of this rank and a column that are neither positive nor negative; ascending, each once.

        Those are the row itself, its direct neighbours and its neighbours' neighbours in the graph of the whole table,
        without its positives. A pair is written as row x R + column.

        Args:
            own: The rows of this rank.
            columns: All rows.
            low: Column of the first own row.
            positives: The positive pairs.
        """
        places, near = self.rows.all_pairs.neighbours(own)
        again, far = self.rows.all_pairs.neighbours(near)
        itself = np.arange(len(own)) * len(columns.ids) + low + np.arange(len(own))
        found = [columns.of_edges(places, near), columns.of_edges(places[again], far)]
        pairs = [itself, *(rows * len(columns.ids) + others for rows, others in found)]
        return np.setdiff1d(np.concatenate(pairs), positives)


class _Places:
    """Where the rows of a batch stand among its columns."""

    def __init__(self, ids: np.ndarray):
        self.ids = ids
        self._order = np.argsort(ids)
        self._sorted = ids[self._order]

    def of_edges(self, anchors: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of edges (anchor, row), those whose row is in the batch, as (anchor, column)."""
        found = np.minimum(np.searchsorted(self._sorted, rows), len(self.ids) - 1)
        inside = self._sorted[found] == rows
        return anchors[inside], self._order[found[inside]]

"""Similarity of aligned words in every layer (paper Figure 4), and how well a word finds its translation.

Retrieval is by CSLS (Conneau et al. 2018, arXiv 1710.04087, section 2.3): twice the cosine, less the mean cosine of the
candidate with its k nearest rows of the query's side, so that candidates which are near to everything do not win. (The
query's own mean is the same for all its candidates.)

Shape letters: q queries, c candidates, S source rows, T target rows, P pairs, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from prealign_ds.alignment.representations import encode_words
from prealign_ds.alignment.rows import TableRows
from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.config import SimilaritySettings
from prealign_ds.evaluation.compute import Compute, gather_dealt, rank_and_world, sum_over_ranks
from prealign_ds.randomness import key_of, mix_array

SPLITS = ("held_in", "held_out")
_ELEMENTS = 2**22
"""Cosines at once: 16 MB in fp32."""


@dataclass(frozen=True)
class _Split:
    """Trained or held-out words of a language; places are among the language's sources and targets.

    Attributes:
        num_words: Words of W.
        pairs_P: Places of the two sides of each pair.
        queries: Places of the sources, and of the targets, that are looked up. A held-out target has no trained pair.
    """

    num_words: int
    pairs_P: tuple[Tensor, Tensor]
    queries: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Sample:
    """The words of a language that are measured: row ids of sources and targets, all their pairs, and the splits."""

    source_rows_S: Tensor
    target_rows_T: Tensor
    pair_keys_P: Tensor
    splits: dict[str, _Split]


class WordSimilarity:
    """Cosines of aligned and of random words, and retrieval, for a fixed sample of a table's words.

    Of each language, ``settings.words`` trained words of W are drawn, and as many held-out ones: uniformly, because the
    alignment loss visits W uniformly. All translations of a drawn word belong to the sample, and all sampled words of a
    language, trained and held-out, are the candidates of its retrieval. A word with two rows (with and without a space
    before it) is looked up as both, each for its own translations.

    Args:
        table: The alignment table, with its held-out words marked.
        rows: The same table as encoded rows.
        settings: The ``evaluation.similarity`` section.
        seed: Decides the sample.
    """

    def __init__(self, table: AlignmentTable, rows: TableRows, settings: SimilaritySettings, seed: int):
        self.rows = rows
        self.settings = settings
        languages = table.edge_language[rows.pair_edge]
        self._draws = mix_array(np.arange(len(table.words), dtype=np.uint64) ^ np.uint64(key_of("similarity", seed)))
        self._samples = {
            language: self._sample(np.flatnonzero(languages == place)) for place, language in enumerate(table.languages)
        }

    def _sample(self, pairs: np.ndarray) -> _Sample | None:
        """The sample of one language, whose pairs are the ``pairs`` of the table's rows."""
        rows = self.rows
        held_out, words = rows.edge_held_out[rows.pair_edge[pairs]], rows.edge_word[rows.pair_edge[pairs]]
        trained_targets = rows.pairs[pairs[~held_out], 1]
        drawn = [self._draw(words[held_out == flag]) for flag in (False, True)]
        chosen = np.isin(words, np.concatenate(drawn))
        if not chosen.any():
            return None
        sides = rows.pairs[pairs[chosen]].T
        (source_rows, sources), (target_rows, targets) = (np.unique(side, return_inverse=True) for side in sides)
        splits = {}
        for name, flag, some in zip(SPLITS, (False, True), drawn, strict=True):
            own = held_out[chosen] == flag
            looked_up = own & ~(flag & np.isin(sides[1], trained_targets))
            splits[name] = _Split(
                len(some),
                (torch.from_numpy(sources[own]), torch.from_numpy(targets[own])),
                (torch.from_numpy(np.unique(sources[own])), torch.from_numpy(np.unique(targets[looked_up]))),
            )
        keys = torch.from_numpy(sources * len(target_rows) + targets)
        return _Sample(torch.from_numpy(source_rows), torch.from_numpy(target_rows), keys, splits)

    def _draw(self, words: np.ndarray) -> np.ndarray:
        words = np.unique(words)
        return words[np.argsort(self._draws[words], kind="stable")[: self.settings.words]]

    @torch.no_grad()
    def measure(self, compute: Compute, device: torch.device | str) -> dict[str, Any]:
        """Similarity and retrieval of each language; all ranks must call it, and share the work.

        Args:
            compute: Reaches the model.
            device: Where to put the words.

        Returns:
            For each language ``held_in`` and ``held_out``, either None if there are no such words: ``cosine`` (mean
            of the aligned pairs), ``random`` (mean of all other pairs of a source and a target) and ``p_at_1``, by
            ``to_target`` and ``to_source`` (share of words whose nearest candidate is any of their translations), each
            a list over the layers 0 .. L+1; ``n``, what was counted; ``candidates``, how many there were.
        """
        return {
            language: {name: None for name in SPLITS} if sample is None else self._of(sample, compute, device)
            for language, sample in self._samples.items()
        }

    def _of(self, sample: _Sample, compute: Compute, device: torch.device | str) -> dict[str, Any]:
        rows, places = torch.unique(torch.cat([sample.source_rows_S, sample.target_rows_T]), return_inverse=True)
        lengths = torch.from_numpy(np.diff(self.rows.offsets))[rows]
        order = torch.argsort(lengths, stable=True)
        places = torch.argsort(order)[places].to(device)
        layers = self._encode(rows[order].numpy(), compute, device)
        rank, world = rank_and_world()
        figures = torch.zeros(len(layers), 4 * len(SPLITS), dtype=torch.float64, device=device)
        for layer, own in enumerate(layers):
            states = gather_dealt(own, len(rows))
            if layer % world == rank:  # each rank gets all rows of every layer, and measures its share of the layers
                figures[layer] = torch.tensor(_figures(sample, states[places], self.settings.neighbours))
        columns = sum_over_ranks(figures).T.tolist()
        return {
            name: _described(sample, split, columns[4 * place : 4 * place + 4])
            for place, (name, split) in enumerate(sample.splits.items())
        }

    def _encode(self, rows: np.ndarray, compute: Compute, device: torch.device | str) -> list[Tensor]:
        """This rank's rows in every layer, of shape (rows / ranks, rounded up; H); as many forwards on each rank."""
        rank, world = rank_and_world()
        own = np.resize(rows, math.ceil(len(rows) / world) * world)[rank::world]
        found = []
        for first in range(0, len(own), self.settings.batch_size):
            padded = self.rows.padded(own[first : first + self.settings.batch_size])
            input_ids, mask = (torch.from_numpy(array).to(device) for array in padded)
            found.append(compute(partial(encode_words, input_ids=input_ids, mask=mask)))
        return [torch.cat(layer) for layer in zip(*found, strict=True)]


def _figures(sample: _Sample, states: Tensor, neighbours: int) -> list[float]:
    """Of one layer and each split: aligned cosine, random cosine, P@1 to the target and to the source; NaN for none.

    Args:
        sample: The words.
        states: Representations of its sources and then of its targets.
        neighbours: k of CSLS.
    """
    device = states.device
    rows_S, rows_T = sample.source_rows_S.to(device), sample.target_rows_T.to(device)
    units_SH, units_TH = functional.normalize(states, dim=1).split([len(rows_S), len(rows_T)])
    keys = sample.pair_keys_P.to(device)
    targets_S = csls_nearest(units_SH, units_TH, rows_S, rows_T, neighbours)
    sources_T = csls_nearest(units_TH, units_SH, rows_T, rows_S, neighbours)
    right_S = torch.isin(torch.arange(len(rows_S), device=device) * len(rows_T) + targets_S, keys)
    right_T = torch.isin(sources_T * len(rows_T) + torch.arange(len(rows_T), device=device), keys)
    figures: list[float] = []
    for split in sample.splits.values():
        sources_P, targets_P = (places.to(device) for places in split.pairs_P)
        aligned = torch.linalg.vecdot(units_SH[sources_P], units_TH[targets_P]).double().sum()
        sources, targets = units_SH[sources_P.unique()].double(), units_TH[targets_P.unique()].double()
        every = sources.sum(0) @ targets.sum(0)
        others = len(sources) * len(targets) - len(sources_P)
        figures += [float(aligned) / len(sources_P) if len(sources_P) else math.nan]
        figures += [float(every - aligned) / others if others else math.nan]
        figures += [
            float(right[queries.to(device)].double().mean())
            for right, queries in zip((right_S, right_T), split.queries, strict=True)
        ]
    return figures


def csls_nearest(
    queries_qH: Tensor, candidates_cH: Tensor, query_rows: Tensor, candidate_rows: Tensor, neighbours: int = 10
) -> Tensor:
    """The candidate that CSLS puts nearest to each query, int64 of shape (q,), a block of cosines at a time.

    Args:
        queries_qH: Queries of length 1.
        candidates_cH: Candidates of length 1.
        query_rows: What each query is; a candidate that is the same gets the cosine -1: a word is not its own
            translation.
        candidate_rows: What each candidate is.
        neighbours: k; fewer where there are fewer rows.
    """
    crowding_c = torch.cat(
        [
            cosines_cq.topk(min(neighbours, len(queries_qH))).values.mean(1)
            for cosines_cq in _cosine_blocks(candidates_cH, queries_qH, candidate_rows, query_rows)
        ]
    )
    blocks = _cosine_blocks(queries_qH, candidates_cH, query_rows, candidate_rows)
    return torch.cat([(2 * cosines_qc - crowding_c).argmax(1) for cosines_qc in blocks])


def _cosine_blocks(units: Tensor, others: Tensor, rows: Tensor, other_rows: Tensor) -> Iterator[Tensor]:
    """The cosines of all ``units`` with all ``others``, some units at a time."""
    size = max(1, _ELEMENTS // len(others))
    for part, part_rows in zip(units.split(size), rows.split(size), strict=True):
        yield (part @ others.T).masked_fill_(part_rows[:, None] == other_rows, -1.0)


def _described(sample: _Sample, split: _Split, columns: list[list[float]]) -> dict[str, Any] | None:
    """The figures of a split over the layers, for JSON; None for a split without words."""
    if not split.num_words:
        return None
    cosine, random, to_target, to_source = (
        [None if math.isnan(value) else value for value in column] for column in columns
    )
    counts = [len(places) for places in (split.pairs_P[0], *split.queries)]
    return {
        "cosine": cosine,
        "random": random,
        "p_at_1": {"to_target": to_target, "to_source": to_source},
        "n": {"words": split.num_words, **dict(zip(("pairs", "to_target", "to_source"), counts, strict=True))},
        "candidates": {"to_target": len(sample.target_rows_T), "to_source": len(sample.source_rows_S)},
    }

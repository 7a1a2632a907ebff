"""Blending corpora: which corpus, and which of its samples, is sample k; in constant time and memory for any k."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from prealign_ds.randomness import KeyedPermutation, key_of, mix

_MAX_BLOCK = 4096


class Blend:
    """Blocks of a fixed size with exact counts per corpus, each block in an order of its own.

    Args:
        weights: Share of each corpus, in any unit (probabilities or token counts).
        seed: Decides the order within the blocks.
        block: Samples in a block. None takes the smallest block that holds the shares exactly, or else 4,096 samples
            with the nearest counts.

    Raises:
        ValueError: If a weight is not positive, or the block is too small to give every corpus one sample.
    """

    def __init__(self, weights: Sequence[float], seed: int, block: int | None = None):
        if not weights or min(weights) <= 0:
            raise ValueError(f"blend weights {list(weights)}: give each corpus a weight above 0")
        shares = np.asarray(weights, dtype=np.float64) / np.sum(weights)
        self.block = block or _exact_block(shares)
        self.counts = _nearest_counts(shares, self.block)
        if min(self.counts) == 0:
            raise ValueError(
                f"blend block of {self.block} samples gives counts {self.counts.tolist()}: "
                f"use a block of at least {int(np.ceil(1 / shares.min()))} so that each corpus has a place"
            )
        self._bounds = np.cumsum(self.counts).tolist()
        self._key = key_of("blend", seed)
        self._current: tuple[int, KeyedPermutation] = (-1, KeyedPermutation(1, 0))

    def __call__(self, sample: int) -> tuple[int, int]:
        """The corpus (its place in ``weights``) and the index within that corpus of global sample ``sample``."""
        if self.block == 1:  # of a single corpus
            return 0, sample
        block, place = divmod(sample, self.block)
        current = self._current  # threads that prepare batches share it
        if current[0] != block:
            current = self._current = (block, KeyedPermutation(self.block, mix(self._key + block)))
        place = current[1](place)
        corpus = bisect_right(self._bounds, place)
        first = self._bounds[corpus - 1] if corpus else 0
        return corpus, block * (self._bounds[corpus] - first) + place - first


def _exact_block(shares: np.ndarray) -> int:
    for block in range(1, _MAX_BLOCK + 1):
        if np.allclose(shares * block, np.round(shares * block), rtol=0, atol=1e-6) and (shares * block > 0.5).all():
            return block
    return _MAX_BLOCK


def _nearest_counts(shares: np.ndarray, block: int) -> np.ndarray:
    """Largest-remainder apportionment: counts that sum to ``block``, each within one of its share."""
    exact = shares * block
    counts = np.floor(exact + 1e-9).astype(np.int64)
    for corpus in np.argsort(-(exact - counts), kind="stable")[: block - counts.sum()]:
        counts[corpus] += 1
    return counts

"""Batches of the stream: which samples each rank reads in each micro-step, and how they become tensors."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from prealign_ds.stream.stream import CodeSwitchedStream, Sample


@dataclass
class LMBatch:
    """A micro-batch of B samples of S tokens.

    Attributes:
        input_ids: int64 of shape (B, S).
        targets: int64 of shape (B, S), already shifted; -100 is ignored.
        counts: ``num_words`` of code-switched text, of these ``num_drawn``, and ``switched.LANGUAGE``.
    """

    input_ids: Tensor
    targets: Tensor
    counts: Counter[str]

    def pin_memory(self) -> LMBatch:
        """Page-locked tensors, for copies that overlap with work on the GPU."""
        return LMBatch(self.input_ids.pin_memory(), self.targets.pin_memory(), self.counts)


def collate(samples: Sequence[Sample]) -> LMBatch:
    """Stack samples of one length."""
    counts: Counter[str] = Counter()
    for sample in samples:
        counts["num_words"] += sample.num_words
        counts["num_drawn"] += sample.num_drawn
        for language, number in sample.num_switched.items():
            counts[f"switched.{language}"] += number
    return LMBatch(
        torch.from_numpy(np.stack([sample.input_ids for sample in samples])),
        torch.from_numpy(np.stack([sample.targets for sample in samples])),
        counts,
    )


class MicroBatches:
    """Sample indices of one rank's micro-batches: batch after batch, in each the micro-steps, in each the ranks.

    Args:
        first_sample: Index of the first sample of the first batch.
        num_batches: Global batches.
        batch_samples: Samples in a global batch.
        micro_batch_size: Samples in a micro-batch of one rank; with the ranks it divides ``batch_samples``.
        rank: This rank.
        world_size: Ranks.
    """

    def __init__(
        self, first_sample: int, num_batches: int, batch_samples: int, micro_batch_size: int, rank: int, world_size: int
    ):
        self._starts = range(first_sample, first_sample + num_batches * batch_samples, micro_batch_size * world_size)
        self._offset = rank * micro_batch_size
        self._size = micro_batch_size

    def __iter__(self) -> Iterator[list[int]]:
        """One list of sample indices for each micro-step."""
        for start in self._starts:
            yield list(range(start + self._offset, start + self._offset + self._size))

    def __len__(self) -> int:
        """Number of micro-steps."""
        return len(self._starts)


def make_loader(
    stream: CodeSwitchedStream, micro_batches: MicroBatches, num_workers: int = 0, pin_memory: bool = False
) -> DataLoader:
    """A loader of :class:`LMBatch`; workers prepare ahead and change nothing but the waiting."""
    return DataLoader(
        stream,
        batch_sampler=micro_batches,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        prefetch_factor=4 if num_workers else None,
        multiprocessing_context="fork" if num_workers else None,
        worker_init_fn=_init_worker,
    )


def _init_worker(worker: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive the fork
    torch.set_num_threads(1)

"""Batches of the stream: which samples each rank reads in each micro-step, and how they become tensors."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from prealign_ds.stream.stream import IGNORED, CodeSwitchedStream, Sample


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


def collate(samples: Sequence[Sample], size: int, sequence_length: int) -> LMBatch:
    """Stack samples to a batch of ``size``; places without a sample predict nothing."""
    inputs = np.zeros((size, sequence_length), dtype=np.int64)
    targets = np.full((size, sequence_length), IGNORED, dtype=np.int64)
    counts: Counter[str] = Counter()
    for place, sample in enumerate(samples):
        inputs[place], targets[place] = sample.input_ids, sample.targets
        counts["num_words"] += sample.num_words
        counts["num_drawn"] += sample.num_drawn
        for language, number in sample.num_switched.items():
            counts[f"switched.{language}"] += number
    return LMBatch(torch.from_numpy(inputs), torch.from_numpy(targets), counts)


class MicroBatches:
    """Sample indices of one rank's micro-batches: batch after batch, in each the micro-steps, in each the ranks.

    Args:
        first_sample: Index of the first sample of the first batch.
        end_sample: Index after the last sample; the last batch ends here and may be smaller, down to empty shares.
        batch_samples: Samples in a global batch.
        size: Samples in a micro-batch of one rank; with the ranks it divides ``batch_samples``.
        rank: This rank.
        world_size: Ranks.
    """

    def __init__(self, first_sample: int, end_sample: int, batch_samples: int, size: int, rank: int, world_size: int):
        batches = -(-(end_sample - first_sample) // batch_samples)
        self._starts = range(first_sample, first_sample + batches * batch_samples, size * world_size)
        self._end = end_sample
        self._offset = rank * size
        self.size = size

    def __iter__(self) -> Iterator[list[int]]:
        """One list of sample indices for each micro-step."""
        for start in self._starts:
            first = start + self._offset
            yield list(range(first, min(first + self.size, self._end)))

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
        collate_fn=partial(collate, size=micro_batches.size, sequence_length=stream.sequence_length),
        pin_memory=pin_memory,
        prefetch_factor=4 if num_workers else None,
        multiprocessing_context="fork" if num_workers else None,
        worker_init_fn=_init_worker,
    )


def _init_worker(worker: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive the fork
    torch.set_num_threads(1)

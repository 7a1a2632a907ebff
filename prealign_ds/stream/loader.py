"""Batches of the stream: which samples each rank reads in each micro-step, and how they become tensors."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prealign_ds.stream.stream import IGNORED, CodeSwitchedStream, Sample

_BATCHES_AHEAD = 4  # for each thread; new words make one batch take longer than another


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
    stream: CodeSwitchedStream, micro_batches: MicroBatches, num_workers: int = 1, pin_memory: bool = False
) -> Iterator[LMBatch]:
    """The micro-batches, which threads prepare while the caller works on earlier ones.

    Threads and not processes: they share what the switcher has learnt of words, hand a batch over without a copy, and
    no signal or want of memory can take one away. Python runs one at a time, which costs little: most of a step waits
    for the device.

    Args:
        stream: The samples.
        micro_batches: Which of them.
        num_workers: Threads. They change only the waiting.
        pin_memory: Whether to page-lock the batches.
    """

    def prepare(indices: list[int]) -> LMBatch:
        batch = collate([stream[index] for index in indices], micro_batches.size, stream.sequence_length)
        return batch.pin_memory() if pin_memory else batch

    with ThreadPoolExecutor(num_workers, "loader") as threads:
        under_way: deque[Future[LMBatch]] = deque()
        for indices in micro_batches:
            under_way.append(threads.submit(prepare, indices))
            if len(under_way) > _BATCHES_AHEAD * num_workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

"""The loader prepares batches ahead, a bounded number of them, and hides no error."""

import threading
import time

import numpy as np
import pytest

from prealign_ds.stream.loader import MicroBatches, make_loader
from prealign_ds.stream.stream import Sample


class Stream:
    """Samples that count themselves; one may be bad, and all take a while."""

    sequence_length = 4

    def __init__(self, bad=-1, seconds=0.0):
        self.read, self.bad, self.seconds = [], bad, seconds

    def __getitem__(self, index):
        if index == self.bad:
            raise ValueError(f"sample {index} is bad")
        time.sleep(self.seconds)
        self.read.append(index)
        return Sample(np.full(4, index), np.full(4, index))


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_batches_are_prepared_while_the_caller_works_and_only_a_few():
    stream = Stream()
    batches = make_loader(stream, MicroBatches(0, 100, 2, 2, 0, 1))
    for number in range(3):
        assert next(batches).input_ids[:, 0].tolist() == [2 * number, 2 * number + 1]
        deadline = time.monotonic() + 10
        while len(stream.read) < 2 * (5 + number) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert stream.read == list(range(2 * (5 + number))), "this batch and four more"
    batches.close()
    assert not loader_threads()


def test_a_caller_that_takes_longer_than_a_batch_does_not_wait():
    batches = make_loader(Stream(seconds=0.01), MicroBatches(0, 20, 1, 1, 0, 1))
    next(batches)
    waits = []
    for _ in range(15):
        time.sleep(0.03)
        begun = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - begun)
    assert np.median(waits) < 0.003


def test_an_error_comes_where_its_batch_would_and_ends_the_threads():
    batches = make_loader(Stream(bad=5), MicroBatches(0, 100, 2, 2, 0, 1), num_workers=3)
    assert [next(batches).input_ids[0, 0].item() for _ in range(2)] == [0, 2]
    with pytest.raises(ValueError, match="sample 5 is bad"):
        next(batches)
    assert not loader_threads()

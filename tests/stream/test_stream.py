"""The stream is a pure function of the sample index, and the blend is exact."""

from collections import Counter

import numpy as np
import pytest
from conftest import Row, make_text
from hypothesis import given, settings
from hypothesis import strategies as st

from prealign_ds.alignment.sources import Pair
from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.codeswitch.switcher import CodeSwitcher
from prealign_ds.randomness import KeyedPermutation, mix, mix_array
from prealign_ds.stream.blend import Blend
from prealign_ds.stream.loader import MicroBatches, make_loader
from prealign_ds.stream.stream import CodeSwitchedStream, StreamCorpus


def make_stream(seed=1, weights=(3, 1), length=8, **more):
    corpora = [
        StreamCorpus("a", "en", Row(np.arange(0, 203)), weights[0], False, "digest-a"),
        StreamCorpus("b", "de", Row(np.arange(1000, 1050)), weights[1], False, "digest-b"),
    ]
    return CodeSwitchedStream(corpora, length, seed, **more)


@given(size=st.integers(1, 300), key=st.integers(0, 2**64 - 1))
def test_permutation_is_one_to_one(size, key):
    permute = KeyedPermutation(size, key)
    assert sorted(permute(index) for index in range(size)) == list(range(size))


def test_permutation_depends_on_its_key_and_moves_things():
    orders = {tuple(KeyedPermutation(50, key)(index) for index in range(50)) for key in range(20)}
    assert len(orders) == 20
    places = [KeyedPermutation(10, key)(0) for key in range(2000)]
    assert min(Counter(places).values()) > 130  # 200 expected, 5 standard deviations are 67


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_vectorised_mixing_equals_the_plain_one(values):
    assert mix_array(np.array(values, dtype=np.uint64)).tolist() == [mix(value) for value in values]


@settings(max_examples=50)
@given(weights=st.lists(st.integers(1, 30), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_every_block_has_exact_counts_and_every_sample_comes_once(weights, seed):
    blend = Blend(weights, seed)
    assert blend.block * np.array(weights) / sum(weights) == pytest.approx(blend.counts)
    seen = [[] for _ in weights]
    for block in range(4):
        places = [blend(block * blend.block + place) for place in range(blend.block)]
        assert Counter(corpus for corpus, _ in places) == dict(enumerate(blend.counts))
        for corpus, index in places:
            seen[corpus].append(index)
    for corpus, indices in enumerate(seen):
        assert sorted(indices) == list(range(4 * blend.counts[corpus]))


def test_paper_token_counts_give_a_block_that_holds_them_exactly():
    blend = Blend([10e9, 0.1e9, 0.1e9, 0.1e9, 0.1e9], seed=0)
    assert blend.block == 104 and blend.counts.tolist() == [100, 1, 1, 1, 1]


def test_samples_own_their_tokens_once_in_each_epoch():
    stream = make_stream()
    for name, samples, low in (("a", 25, 0), ("b", 6, 1000)):
        first_epoch = [k for k in range(400) if stream.locate(k)[0].name == name and stream.locate(k)[1] == 0]
        rows = [stream[k] for k in first_epoch]
        assert len(rows) == samples
        targets = np.concatenate([row.targets for row in rows])
        assert sorted(targets) == list(range(low + 1, low + 1 + 8 * samples))
        for row in rows:
            assert (row.targets == row.input_ids + 1).all()


def test_epochs_have_orders_of_their_own():
    stream = make_stream(weights=(1, 1))
    places = [stream.locate(k) for k in range(300)]
    first, second = ([p[2] for p in places if p[0].name == "b" and p[1] == epoch] for epoch in (0, 1))
    assert sorted(first) == sorted(second) and first != second


def flatten(stream, num_batches, batch, micro, world, workers, first=0):
    """The samples that all ranks read, in the order of their indices."""
    per_rank = [
        list(make_loader(stream, MicroBatches(first, first + num_batches * batch, batch, micro, rank, world), workers))
        for rank in range(world)
    ]
    return torch_rows([batch for step in zip(*per_rank, strict=True) for batch in step])


def torch_rows(batches):
    return [tuple(row) for batch in batches for row in batch.input_ids.tolist()]


def test_the_same_samples_for_any_ranks_workers_batches_and_run_lengths():
    expected = [tuple(make_stream()[k].input_ids.tolist()) for k in range(96)]  # b has 6 samples: 4 epochs of it
    assert flatten(make_stream(), 12, 8, 4, 1, 1) == expected
    assert flatten(make_stream(), 12, 8, 4, 2, 1) == expected
    assert flatten(make_stream(), 12, 8, 4, 2, 4) == expected
    assert flatten(make_stream(), 4, 24, 3, 2, 1) == expected
    assert flatten(make_stream(), 5, 8, 2, 4, 1) == expected[:40]
    assert flatten(make_stream(), 7, 8, 8, 1, 1, first=40) == expected[40:]


@pytest.mark.parametrize("mode", ["input_only", "vanilla"])
def test_code_switched_samples_are_as_pure(tokenizer, mode):
    words = "the a he plays piano old river music house we".split()
    table = AlignmentTable.from_pairs(None, [Pair(w, "de", w[::-1] + end, "t") for w in words for end in ("x", "yz")])
    tokens = np.array(tokenizer.encode(make_text(900), add_special_tokens=False))

    def build():  # a new switcher each time: its memory of words must not matter
        corpora = [
            StreamCorpus("en", "en", Row(tokens), 2, True, "e"),
            StreamCorpus("de", "de", Row(tokens[:200]), 1, False, "d"),
        ]
        return CodeSwitchedStream(corpora, 16, 3, CodeSwitcher(table, tokenizer, mode), 0.5)

    def rows(batches):
        return [
            (tuple(x), tuple(y)) for b in batches for x, y in zip(b.input_ids.tolist(), b.targets.tolist(), strict=True)
        ]

    stream = build()
    number = 3 * (len(tokens) // 16) // 6 * 6  # more than one epoch of both
    expected = [
        (tuple(s.input_ids.tolist()), tuple(s.targets.tolist())) for s in map(stream.__getitem__, range(number))
    ]
    assert {stream.locate(k)[1] for k in range(number) if stream.locate(k)[0].name == "en"} >= {0, 1}
    assert sum(sum(stream[k].num_switched.values()) for k in range(number)) > 100
    for world, micro, workers in ((1, 6, 1), (2, 3, 1), (2, 1, 4), (3, 2, 1)):
        shares = [
            list(make_loader(build(), MicroBatches(0, number // 6 * 6, 6, micro, rank, world), workers))
            for rank in range(world)
        ]
        assert rows(b for step in zip(*shares, strict=True) for b in step) == expected
    first, again = (next(k for k in range(number) if stream.locate(k) == (stream.corpora[0], e, 32)) for e in (0, 1))
    assert expected[first] != expected[again], "another epoch draws anew"


def test_order_of_access_changes_nothing():
    stream, other = make_stream(), make_stream()
    forward = [stream[k].input_ids.tolist() for k in range(60)]
    backward = [other[k].input_ids.tolist() for k in reversed(range(60))]
    assert forward == backward[::-1]


def test_fingerprint_changes_with_everything_that_decides_the_samples():
    prints = {
        make_stream().fingerprint(),
        make_stream(seed=2).fingerprint(),
        make_stream(weights=(2, 1)).fingerprint(),
        make_stream(length=4).fingerprint(),
        make_stream(block=8).fingerprint(),
        make_stream().fingerprint(table="x"),
    }
    assert len(prints) == 6 and make_stream().fingerprint() == make_stream().fingerprint()


def test_bad_streams_are_refused():
    with pytest.raises(ValueError, match=r"corpus b: 50 tokens are less than one sample of 60 \+ 1"):
        make_stream(length=60)
    with pytest.raises(ValueError, match="weight above 0"):
        make_stream(weights=(1, 0))
    with pytest.raises(ValueError, match="block of at least 101"):
        Blend([100, 1], 0, block=20)
    with pytest.raises(ValueError, match="a name of its own"):
        corpus = StreamCorpus("a", "en", Row(range(99)), 1.0, False, "x")
        CodeSwitchedStream([corpus, corpus], 8, 0)

"""Facts in the stream: as pure as the rest, told exactly so often, and nothing else is changed."""

from collections import Counter

import numpy as np
import pytest
from conftest import Row, make_text
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import make_plan, texts_of

from prealign_ds.alignment.sources import Pair
from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.codeswitch.switcher import CodeSwitcher
from prealign_ds.stream.loader import MicroBatches, make_loader
from prealign_ds.stream.stream import IGNORED, CodeSwitchedStream, StreamCorpus

LENGTH, PERIOD, START = 96, 220, 30


def make_stream(tokenizer, with_knowledge=True, switcher=None, seed=3):
    tokens = np.array(tokenizer.encode(make_text(3000), add_special_tokens=False))
    corpora = [
        StreamCorpus("en", "en", Row(tokens), 3, True, "e"),
        StreamCorpus("clone", "clone", Row(tokens[:900] + len(tokenizer)), 1, False, "c"),
    ]
    plan = make_plan(tokenizer, samples=PERIOD, start_tokens=START * LENGTH) if with_knowledge else None
    return CodeSwitchedStream(corpora, LENGTH, seed, switcher, 0.5, knowledge=plan)


def make_switcher(tokenizer):
    words = "the is of was in by city town whose company book country".split()
    table = AlignmentTable.from_pairs(None, [Pair(w, "de", w[::-1] + "x", "t") for w in words])
    return CodeSwitcher(table, tokenizer)


def rows(sample):
    return sample.input_ids.tolist(), sample.targets.tolist()


@pytest.fixture(scope="module")
def stream(tokenizer):
    return make_stream(tokenizer)


@pytest.fixture(scope="module")
def told(stream):
    """Samples that tell facts, of the first three periods and before."""
    return {k for k in range(START + 3 * PERIOD) if stream.knowledge.locate(k) is not None}


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, START + 3 * PERIOD), max_size=8))
def test_the_order_of_access_changes_nothing(tokenizer, indices):
    forward, backward = make_stream(tokenizer), make_stream(tokenizer)
    assert [rows(forward[k]) for k in indices] == [rows(backward[k]) for k in reversed(indices)][::-1]


def test_samples_that_tell_no_facts_are_the_same_without_them(tokenizer, stream, told):
    plain = make_stream(tokenizer, with_knowledge=False)
    same = {k for k in range(START + 3 * PERIOD) if rows(stream[k]) == rows(plain[k])}
    assert same == set(range(START + 3 * PERIOD)) - told
    assert told and min(told) >= START


def test_every_sentence_is_told_as_often_as_it_should_and_nowhere_else(stream, told):
    plan = stream.knowledge
    owner, expected, found = {}, Counter(), Counter()
    for period in range(3):
        for fact in plan.facts(period):
            owner |= dict.fromkeys(texts_of(plan, fact, fact.direction.told), (fact, period))
            expected[fact] = fact.frequency
    for k in sorted(told):
        owned = np.where(stream[k].targets == IGNORED, plan.eos, stream[k].targets)
        assert owned[-1] == plan.eos, "every sentence stands whole in its sample"
        for sentence in np.split(owned, (owned == plan.eos).nonzero()[0]):
            if text := tuple(sentence[sentence != plan.eos].tolist()):
                fact, period = owner[text]
                assert period == (k - START) // PERIOD and fact.direction.told == stream[k].language
                found[fact] += 1
    assert found == expected


def test_places_of_facts_are_spread_over_the_period(told):
    for period in range(3):
        offsets = sorted((k - START) % PERIOD for k in told if (k - START) // PERIOD == period)
        assert offsets[0] < PERIOD // 4 and offsets[-1] > 3 * PERIOD // 4
        assert len(offsets) < PERIOD / 2


def test_padding_is_no_target(stream, told):
    eos = stream.knowledge.eos
    padded = [k for k in told if (stream[k].targets == IGNORED).any()]
    assert padded
    for k in told:
        sample = stream[k]
        assert (
            (sample.targets == IGNORED) == ((sample.input_ids == eos) & (np.r_[sample.input_ids[1:], eos] == eos))
        ).all()


def test_facts_in_the_source_language_are_code_switched_in_the_input_alone(tokenizer, stream, told):
    switched = make_stream(tokenizer, switcher=make_switcher(tokenizer))
    numbers = Counter()
    for k in sorted(told):
        plain, sample = stream[k], switched[k]
        numbers[sample.language] += sum(sample.num_switched.values())
        if sample.language == "clone":
            assert rows(sample) == rows(plain)
        else:
            targets = [token for token in sample.targets.tolist() if token != IGNORED]
            assert targets and set(targets) <= set(plain.targets.tolist()), "no translation is a target"
    assert numbers["en"] > 100 and numbers["clone"] == 0


def test_ranks_and_workers_read_the_same_samples(tokenizer, stream):
    def read(world, workers):
        shares = [
            list(make_loader(make_stream(tokenizer), MicroBatches(0, 480, 8, 8 // world, rank, world), workers))
            for rank in range(world)
        ]
        return [row for step in zip(*shares, strict=True) for batch in step for row in batch.input_ids.tolist()]

    expected = [stream[k].input_ids.tolist() for k in range(480)]
    assert read(1, 1) == expected and read(2, 4) == expected


def test_the_fingerprint_knows_the_facts(tokenizer):
    plain, told = make_stream(tokenizer, with_knowledge=False), make_stream(tokenizer)
    assert plain.fingerprint() != told.fingerprint() == make_stream(tokenizer).fingerprint()

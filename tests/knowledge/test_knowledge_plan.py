"""The plan: disjoint facts, fair distractors, exact packing, and errors before a run begins."""

from collections import Counter

import numpy as np
import pytest
from conftest import gpt2_style
from hypothesis import given
from hypothesis import strategies as st
from planning import make_plan, texts_of

from prealign_ds.knowledge.directions import Direction, directions_of
from prealign_ds.knowledge.entities import spell
from prealign_ds.knowledge.packing import PackedDocuments

ALL = ("en", "de", "ru", "zh", "ar")


def test_directions_of_figure_3_and_of_a_list():
    assert [str(d) for d in directions_of(None, "en", ["en", "clone", "en"])] == [
        "en->en",
        "clone->clone",
        "en->clone",
        "clone->en",
    ]
    assert directions_of(["en->de"], "en", ["en", "de"]) == [Direction("en", "de")]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["en-de"], "write it as told->asked"),
        (["en->"], "write it as told->asked"),
        (["en->fr"], r"'en->fr': no corpus in fr \(data.corpora has en, de\)"),
        (["en->de", "en->de"], "each once"),
        ([], "one or more"),
    ],
)
def test_wrong_directions(names, message):
    with pytest.raises(ValueError, match=message):
        directions_of(names, "en", ["en", "de"])


@pytest.mark.parametrize("script", ["same", "transliterated"])
def test_distractors_are_objects_of_alike_facts_and_all_statements_are_equally_long(any_tokenizer, script):
    plan = make_plan(any_tokenizer, ALL, script=script, length=512, samples=400, facts=8, frequencies=[1, 2])
    facts = plan.facts(1)
    assert len(facts) == 13 * 2 * 8
    objects = {fact.objects[0]: fact for fact in facts}
    for fact, choices in zip(facts, plan.statements(1), strict=True):
        assert len(set(fact.objects)) == 4 and len({len(row) for row in choices}) == 1
        for name in fact.objects[1:]:
            assert objects[name][:3] == fact[:3], "same direction, frequency and relation"
        for place, row in enumerate(choices):
            assert tuple(row) in texts_of(plan, fact, fact.direction.asked, place)


def test_a_direction_may_have_facts_of_its_own(tokenizer):
    plan = make_plan(tokenizer, directions={"en->clone": 12, "en->en": 4}, samples=100)
    counts = Counter((str(fact.direction), fact.frequency) for fact in plan.facts(1))
    frequencies = plan.settings.frequencies
    assert counts == {("en->clone", f): 12 for f in frequencies} | {("en->en", f): 4 for f in frequencies}
    assert plan.digest() != make_plan(tokenizer, directions=["en->clone", "en->en"], samples=100).digest()


def test_no_name_comes_twice_in_any_direction_or_period(tokenizer):
    plan = make_plan(tokenizer)
    facts = [fact for period in (0, 1, 2, 9) for fact in plan.facts(period)]
    used = [name for fact in facts for name in (fact.subject, fact.objects[0])]
    assert len(facts) == 4 * 4 * 2 * 4 and len(set(used)) == len(used)
    assert {fact.direction for fact in facts} == set(plan.directions)
    other = {name for fact in make_plan(tokenizer, seed=8).facts(0) for name in (fact.subject, fact.objects[0])}
    assert not other & set(used)


def test_words_of_the_corpus_and_the_table_become_no_names(tokenizer):
    def forms(plan, language):
        names = [name for fact in plan.facts(0) for name in (fact.subject, fact.objects[0])]
        return {spell(name, language, "transliterated").lower() for name in names}

    options = {"languages": ("en", "ru"), "script": "transliterated", "length": 256}
    free = make_plan(tokenizer, **options)
    known = {*sorted(forms(free, "en"))[:20], *sorted(forms(free, "ru"))[:20]}
    plan = make_plan(tokenizer, known=known, **options)
    assert not known & (forms(plan, "en") | forms(plan, "ru"))


@given(lengths=st.lists(st.integers(1, 11), max_size=30), length=st.integers(12, 20))
def test_packed_documents_stand_whole_in_samples(lengths, length):
    documents = [np.full(size, number + 1) for number, size in enumerate(lengths)]
    packed = PackedDocuments(documents, length, 0)
    assert packed.num_tokens == packed.num_samples * length + 1
    assert packed.num_samples <= 2 * sum(size + 1 for size in lengths) // length + 1
    found = []
    for sample in range(packed.num_samples):
        row = packed.read(sample * length, length + 1)
        assert row[0] == 0 and row[-1] == 0 and len(row) == length + 1
        pieces = np.split(row, (row == 0).nonzero()[0])
        found += [piece[1:].tolist() for piece in pieces if len(piece) > 1]
    assert found == [document.tolist() for document in documents]


def test_a_period_ends_where_its_samples_end(tokenizer):
    plan = make_plan(tokenizer, length=96, samples=10, start_tokens=5 * 96)
    assert plan.ended(0, 14) == range(0) and plan.ended(0, 4) == range(0)
    assert list(plan.ended(14, 15)) == [0] and list(plan.ended(12, 16)) == [0]
    assert list(plan.ended(15, 25)) == [1] and list(plan.ended(0, 36)) == [0, 1, 2]
    ends = [period for before in range(0, 60, 4) for period in plan.ended(before, before + 4)]
    assert ends == [0, 1, 2, 3, 4]


def test_memory_does_not_grow_with_the_periods(tokenizer):
    plan = make_plan(tokenizer)
    first = plan.facts(0)
    for period in range(1, 6):
        plan.facts(period)
    assert len(plan._built) == 2 and plan.facts(0) == first


def test_what_does_not_fit_is_named_before_a_run(tokenizer):
    plan = make_plan(tokenizer, samples=400)
    plan.check(4000)
    assert 0.05 < plan.share(0) <= 0.5
    with pytest.raises(
        ValueError, match=r"are \d+% of its 20 samples, at most 50% may be; raise knowledge.period_tokens"
    ):
        make_plan(tokenizer, samples=20).check(4000)
    with pytest.raises(ValueError, match="the first period ends after 38400 tokens, the run has 38304"):
        plan.check(399)
    with pytest.raises(
        ValueError, match="period_tokens: 100 is not a multiple of data.sequence_length 96; the nearest is 96"
    ):
        make_plan(tokenizer, period_tokens=100)
    with pytest.raises(ValueError, match="a sentence of .* tokens is longer than data.sequence_length 8"):
        make_plan(tokenizer, length=8).check(4000)
    with pytest.raises(ValueError, match="fr.yaml: no such file"):
        make_plan(tokenizer, ("en", "fr"))


def test_the_digest_changes_with_all_that_decides_the_facts(tokenizer, tmp_path):
    (tmp_path / "words").write_text("a\n")
    (tmp_path / "en.yaml").write_text('P1: ["{subject} {object}"]')
    digests = {
        make_plan(gpt2_style(), **changes).digest()
        for changes in (
            {},
            {"seed": 8},
            {"facts": 8},
            {"frequencies": [1]},
            {"directions": ["en->en"]},
            {"start_tokens": 96},
            {"script": "transliterated"},
            {"templates": tmp_path},
            {"words": [tmp_path / "words"]},
        )
    }
    assert len(digests) == 9 and make_plan(tokenizer).digest() in digests

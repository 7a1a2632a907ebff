import itertools
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prealign_ds.alignment.counting import WordCount
from prealign_ds.alignment.quality import qualities
from prealign_ds.alignment.sources import Pair, read_pairs
from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.words import is_alphabetic
from tests.conftest import REPOSITORY


def de(*pairs):
    return [Pair(word, "de", text, "test") for word, text in pairs]


def counts_of(**counts):
    return {word: WordCount(count, count // 2) for word, count in counts.items()}


def edges(table):
    """Every edge spelled out, in order."""
    return [
        (table.words[word], table.languages[language], text, table.sources[source], bool(held_out))
        for word, language, text, source, held_out in zip(
            table.edge_word, table.edge_language, table.edge_text, table.edge_source, table.edge_held_out, strict=True
        )
    ]


def assert_same(left, right):
    assert left.words == right.words and left.languages == right.languages
    assert left.counts.tolist() == right.counts.tolist() and left.spaced.tolist() == right.spaced.tolist()
    assert edges(left) == edges(right)
    assert left.digest() == right.digest()


words = st.text(st.sampled_from("aAbBäß'. 琴"), min_size=1, max_size=3)
pair_lists = st.lists(
    st.builds(Pair, words, st.sampled_from(["de", "ru", "zh-Hans"]), words, st.sampled_from(["", "x", "y"])),
    max_size=30,
)
count_maps = st.dictionaries(
    words, st.integers(1, 9).flatmap(lambda n: st.builds(WordCount, st.just(n), st.integers(0, n)))
)


def build(counts, pairs):
    try:
        return AlignmentTable.from_pairs(counts, pairs)
    except ValueError as error:
        assert "no translations are left" in str(error)
        return None


def test_worked_example():
    pairs = de(("piano", "Klavier"), ("bank", "Ufer"), ("piano", "Flügel"), ("piano", "Klavier"), ("bank", "bank"))
    pairs += [Pair("piano", "ar", "بيانو", "other"), Pair("zither", "de", "Zither", "test")]
    table = AlignmentTable.from_pairs(counts_of(piano=3, bank=8), pairs)
    assert table.words == ["bank", "piano"] and table.counts.tolist() == [8, 3] and table.spaced.tolist() == [4, 1]
    assert table.languages == ["ar", "de"] and table.sources == ["other", "test"]
    assert edges(table) == [
        ("bank", "de", "Ufer", "test", False),
        ("piano", "ar", "بيانو", "other", False),
        ("piano", "de", "Klavier", "test", False),
        ("piano", "de", "Flügel", "test", False),
    ]
    assert table.dropped == {"not_in_corpus": 1, "identical": 1, "duplicate": 1}
    assert table.translations("piano") == {"ar": ("بيانو",), "de": ("Klavier", "Flügel")}
    assert table.translations("Piano") == {}
    assert table.edges_of(1) == slice(1, 4)
    assert table.edge_word.dtype == np.int64


def test_look_up_is_exact_then_lower_case():
    table = AlignmentTable.from_pairs(None, de(("polish", "polieren"), ("Polish", "polnisch"), ("piano", "Klavier")))
    found = {word: table.lookup(word) for word in ("Polish", "polish", "POLISH", "Piano", "pianos")}
    assert {word: None if place is None else table.words[place] for word, place in found.items()} == {
        "Polish": "Polish",
        "polish": "polish",
        "POLISH": "polish",
        "Piano": "piano",
        "pianos": None,
    }


def test_running_words_count_for_the_entry_that_look_up_finds():
    counts = counts_of(Piano=1, piano=2, PIANO=4, Polish=10, polish=20, POLISH=40, May=7)
    pairs = de(("piano", "Klavier"), ("Polish", "polnisch"), ("polish", "Politur"), ("may", "dürfen"), ("MAY", "Mai"))
    table = AlignmentTable.from_pairs(counts, pairs)
    assert dict(zip(table.words, table.counts.tolist(), strict=True)) == {
        "polish": 60,
        "Polish": 10,
        "piano": 7,
        "may": 7,
    }
    assert table.translations("may") == {"de": ("dürfen", "Mai")}  # MAY is not in the corpus: it joins may
    assert AlignmentTable.from_pairs(counts, pairs, minimum_count=8).words == ["polish", "Polish"]


@settings(max_examples=100, deadline=None)
@given(count_maps, pair_lists)
def test_counts_and_coverage_equal_a_slow_reference(counts, pairs):
    table = build(counts, pairs)
    if table is None:
        return
    table = table.hold_out(0.3, 1)
    by_entry = dict.fromkeys(table.words, 0)
    for word, (count, _) in counts.items():
        form = word if word in by_entry else word.lower()
        if form in by_entry:
            by_entry[form] += count
    assert list(by_entry.values()) == table.counts.tolist()
    assert table.words == sorted(table.words, key=lambda word: (-by_entry[word], word)) and min(by_entry.values()) > 0
    forms = {word: word if word in by_entry else word.lower() for word in counts if is_alphabetic(word)}
    total = sum(counts[word].count for word in forms)
    for language, one in qualities(table, counts).items():
        entries = {w: table.translations(w)[language] for w in table.words if language in table.translations(w)}
        has = {word: forms[word] in entries for word in forms}
        assert one.samples == entries and one.num_words == len(entries)  # there are fewer than are sampled
        assert one.num_pairs == sum(len(set(texts)) for texts in entries.values())
        assert one.running == pytest.approx(sum(counts[word].count for word in forms if has[word]) / max(total, 1))
        assert one.types == pytest.approx(sum(has.values()) / max(len(forms), 1))
        missing = sorted((word for word in forms if not has[word]), key=lambda word: (-counts[word].count, word))
        assert one.missing == missing[:20]


@settings(max_examples=60, deadline=None)
@given(st.none() | count_maps, pair_lists, st.sampled_from([0.0, 0.5]))
def test_files_hold_the_whole_table(tmp_path_factory, counts, pairs, share):
    table = build(counts, pairs)
    if table is None:
        return
    table = table.hold_out(share, 3)
    for suffix in ("parquet", "jsonl"):
        path = tmp_path_factory.mktemp("table") / f"table.{suffix}"
        table.save(path)
        assert_same(AlignmentTable.load(path), table)


def test_order_of_dictionaries_does_not_move_the_translations_of_a_language():
    pairs = [Pair("a", "ru", "б", "t"), *de(("a", "Z"), ("b", "X"), ("a", "Y"), ("a", "Z"))]
    assert AlignmentTable.from_pairs(None, pairs).translations("a") == {"de": ("Z", "Y"), "ru": ("б",)}


def test_clone_keeps_every_counted_form():
    counts = {"the": WordCount(9, 9), "The": WordCount(2, 2), ".": WordCount(5, 0), "12": WordCount(2, 1)}
    table = AlignmentTable.clone({**counts, "rare": WordCount(1, 1)})
    assert dict(zip(table.words, zip(table.counts.tolist(), table.spaced.tolist(), strict=True), strict=True)) == counts
    assert table.translations("The") == {"clone": ("The",)} and table.lookup("rare") is None
    assert table.languages == table.sources == ["clone"]
    with pytest.raises(ValueError, match="no translations are left"):
        AlignmentTable.clone(counts, minimum_count=10)


@pytest.mark.parametrize(("share", "size"), [(1.0, 10), (0.25, 3), (0.3, 3), (0.01, 1)])
def test_top_is_the_most_frequent_share_by_types(share, size):
    table = AlignmentTable.clone({f"w{number}": WordCount(number + 2, 1) for number in range(10)})
    top = table.top(share)
    assert top.words == [f"w{number}" for number in range(9, 9 - size, -1)]
    assert edges(top) == edges(table)[:size]
    with pytest.raises(ValueError, match="most frequent words: 0"):
        table.top(0)


def test_held_out_words_stay_in_the_edges_and_leave_the_translations():
    counts = {form: WordCount(3, 3) for number in range(400) for form in (f"w{number}", f"W{number}")}
    pairs = [Pair(word, code, f"{word}-{code}", "t") for word in counts for code in ("de", "ru")]
    table = AlignmentTable.from_pairs(counts, pairs)
    held = table.hold_out(0.2, seed=7)
    assert [edge[:4] for edge in edges(held)] == [edge[:4] for edge in edges(table)] and not table.edge_held_out.any()
    assert 0.14 < held.edge_held_out.mean() < 0.26
    for place, word in enumerate(held.words):
        flags = held.edge_held_out[held.edges_of(place)]
        assert flags.all() or not flags.any()
        assert bool(held.translations(word)) == (not flags.any())
        assert held.translations(word, include_held_out=True) == table.translations(word)
        assert bool(held.translations(word.lower())) == bool(held.translations(word.upper()))
    assert held.digest() == table.hold_out(0.2, seed=7).digest() != table.hold_out(0.2, seed=8).digest()
    part = table.top(0.5)
    assert part.hold_out(0.2, seed=7).edge_held_out.tolist() == held.edge_held_out[: len(part.edge_text)].tolist()
    with pytest.raises(ValueError, match="held-out words: 1"):
        table.hold_out(1, 0)


def test_merge():
    left = AlignmentTable.from_pairs(counts_of(piano=4, bank=9), de(("piano", "Klavier"), ("bank", "Ufer")))
    pairs = [*de(("piano", "Flügel"), ("piano", "Klavier")), Pair("old", "ru", "старый", "more")]
    merged = left.merge(AlignmentTable.from_pairs(counts_of(piano=6, old=5), pairs))
    assert merged.words == ["bank", "piano", "old"] and merged.counts.tolist() == [9, 6, 5]
    assert merged.translations("piano") == {"de": ("Klavier", "Flügel")}
    assert merged.translations("old") == {"ru": ("старый",)}
    assert_same(left.merge(left), left)
    held = left.hold_out(0.999, 0)
    assert held.edge_held_out.all() and held.merge(left).edge_held_out.all() and left.merge(held).edge_held_out.all()


def test_the_digest_sees_all_but_the_sources():
    table = AlignmentTable.from_pairs(None, [Pair("a", "de", "b", "one")])
    assert table.digest() == AlignmentTable.from_pairs(None, [Pair("a", "de", "b", "two")]).digest()
    for pair in (Pair("x", "de", "b", "one"), Pair("a", "ru", "b", "one"), Pair("a", "de", "x", "one")):
        assert AlignmentTable.from_pairs(None, [pair]).digest() != table.digest()
    assert AlignmentTable.from_pairs({"a": WordCount(2, 1)}, de(("a", "b"))).digest() != table.digest()


GOOD = {"word": "a", "translations": {"de": ["b"]}}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{", "not valid JSON"),
        ([], "expected an object"),
        ({"word": "x"}, "expected an object"),
        ({**GOOD, "wrod": 1}, "expected an object"),
        ({**GOOD, "word": ""}, "word '': give a string"),
        (GOOD, "word 'a' is there a second time"),
        ({"word": "x", "translations": {}}, "translations: there is none"),
        ({"word": "x", "translations": {"de": []}}, "translations.de: expected a list"),
        ({"word": "x", "translations": {"de": [""]}}, "translations: there is none, or an empty one"),
        ({"word": "x", "translations": ["b"]}, "translations: expected"),
        ({"word": "x", "translations": {"German": ["b"]}}, "language 'German'"),
        ({**GOOD, "word": "x", "count": "3"}, "count and spaced: give whole numbers"),
        ({**GOOD, "word": "x", "count": 1, "spaced": 2}, "count and spaced: give whole numbers"),
        ({**GOOD, "word": "x", "held_out": 1}, "held_out: give true or false"),
        ({**GOOD, "word": "x", "sources": {"de": ["s", "s"]}}, "sources.de: give one for each"),
    ],
)
def test_bad_jsonl_lines_are_named(tmp_path, entry, message):
    path = tmp_path / "table.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{entry if isinstance(entry, str) else json.dumps(entry)}\n")
    with pytest.raises(ValueError, match=rf"table\.jsonl:2: {message}"):
        AlignmentTable.load(path)


ROWS = {
    "word": ["a", "a"],
    "count": [3, 3],
    "spaced": [1, 1],
    "language": ["de", "ru"],
    "translation": ["b", "б"],
    "source": ["", ""],
    "held_out": [False, False],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spaced": None}, "no column spaced"),
        ({"count": ["3", "3"]}, "column count: expected integers, found string"),
        ({"held_out": [0, 0]}, "column held_out: expected true or false"),
        ({"word": [1, 2]}, "column word: expected text"),
        ({"translation": ["b", None]}, "row 2: no translation"),
        ({"translation": ["b", ""]}, "row 2: empty translation"),
        ({"count": [3, 4]}, "row 1: 'a' has several values of count"),
        ({"count": [0, 0]}, "word 'a': count and spaced"),
        ({"language": ["de", "Russian"]}, "language 'Russian'"),
    ],
)
def test_bad_parquet_files_are_named(tmp_path, change, message):
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({name: rows for name, rows in {**ROWS, **change}.items() if rows is not None}), path)
    with pytest.raises(ValueError, match=rf"table\.parquet: {message}"):
        AlignmentTable.load(path)


def test_good_parquet_and_files_that_are_none(tmp_path):
    pq.write_table(pa.table(ROWS), tmp_path / "table.parquet")
    assert AlignmentTable.load(tmp_path / "table.parquet").translations("a") == {"de": ("b",), "ru": ("б",)}
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(ValueError, match=r"bad\.parquet: not a Parquet file"):
        AlignmentTable.load(tmp_path / "bad.parquet")
    pq.write_table(pa.table(ROWS).slice(0, 0), tmp_path / "empty.parquet")
    (tmp_path / "empty.jsonl").write_text("")
    for name in ("empty.parquet", "empty.jsonl"):
        with pytest.raises(ValueError, match=f"{name}: holds no translations"):
            AlignmentTable.load(tmp_path / name)
    with pytest.raises(ValueError, match=r"table\.csv: alignment tables are \.parquet or \.jsonl"):
        AlignmentTable.load(tmp_path / "table.csv")
    with pytest.raises(FileNotFoundError):
        AlignmentTable.load(tmp_path / "absent.parquet")


def test_a_bad_language_is_refused():
    with pytest.raises(ValueError, match="language 'German'"):
        AlignmentTable.from_pairs(None, [Pair("a", "German", "b", "t")])


def test_a_real_dictionary(tmp_path):
    path = os.path.join(os.environ.get("PREALIGN_SHARED", REPOSITORY.parent / "shared"), "data/dict/en-de.tsv.xz")
    if not os.path.exists(path):
        pytest.skip("the sample dictionaries are not here; PREALIGN_SHARED may name their folder")
    table = AlignmentTable.from_pairs(None, itertools.islice(read_pairs(path, "de"), 100_000))
    assert table.languages == ["de"] and table.sources == ["en-de.tsv.xz"]
    assert 20_000 < len(table.words) < 60_000 and 95_000 < len(table.edge_text) < 100_000
    assert "Buch" in table.translations("book")["de"]
    table.save(tmp_path / "table.parquet")
    assert AlignmentTable.load(tmp_path / "table.parquet").digest() == table.digest()

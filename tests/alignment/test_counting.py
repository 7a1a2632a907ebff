import random
import string
import sys
from collections import Counter

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from prealign_ds.alignment import counting
from prealign_ds.alignment.counting import WordCount, count_words
from prealign_ds.words import WORD


def slow_reference(texts):
    counts, spaced = Counter(), Counter()
    for text in texts:
        for match in WORD.finditer(text):
            counts[match.group()] += 1
            before = text[: match.start()]
            spaced[match.group()] += not before or WORD.fullmatch(before[-1]) is None
    return {word: WordCount(count, spaced[word]) for word, count in counts.items()}


def test_worked_example():
    counts = count_words(["The piano, the piano.\nDon't 12ab", ".the"])
    assert counts == {
        "the": WordCount(2, 1),
        "piano": WordCount(2, 2),
        "The": WordCount(1, 1),
        ",": WordCount(1, 0),
        ".": WordCount(2, 1),
        "Don't": WordCount(1, 1),
        "12": WordCount(1, 1),
        "ab": WordCount(1, 0),
    }
    assert list(counts)[:3] == [".", "piano", "the"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab'’1٣.,- \n\t\u00a0\u2028\u200b\x1c\x1f\x85éक्中"), max_size=30), max_size=5))
def test_equals_the_slow_reference(texts):
    assert count_words(texts, workers=1) == slow_reference(texts)


@pytest.mark.parametrize("workers", [1, 2])
def test_many_batches_count_the_same_for_any_number_of_workers(monkeypatch, workers):
    monkeypatch.setattr(counting, "_BATCH_CHARACTERS", 500)
    monkeypatch.setattr(counting, "_MOST_PIECES", 8)
    monkeypatch.setattr(counting, "_MOST_FRESH", 40)
    rng = random.Random(0)
    texts = [" ".join(rng.choice(["a", "b.", "(c", "Dd's", "7,5"]) for _ in range(20)) for _ in range(200)]
    counts = count_words((text for text in texts), workers=workers)
    assert counts == slow_reference(texts)
    assert list(counts) == sorted(counts, key=lambda word: (-counts[word].count, word))


def test_a_small_text_starts_no_process(monkeypatch):
    monkeypatch.setattr(counting, "ProcessPoolExecutor", None)
    assert count_words(["a b a"], workers=8)["a"] == (2, 2)


def test_minimum_count_and_bad_workers():
    assert set(count_words(["a b a"], minimum_count=2)) == {"a"}
    assert count_words([]) == {}
    with pytest.raises(ValueError, match="workers: 0"):
        count_words(["a"], workers=0)


def test_the_fast_way_takes_only_letters_for_letters_and_marks_for_marks():
    every = "".join(map(chr, (*range(0xD800), *range(0xE000, sys.maxunicode + 1))))
    letters = regex.findall(f"[{counting._LETTERS}]", every)
    marks = [mark for mark in every if regex.match(f"[{counting._MARKS}]", mark)]
    assert regex.fullmatch(r"\p{L}+", "".join(letters)) and len(letters) > 20_000
    assert regex.fullmatch(r"[^\s\p{L}\p{M}\p{N}]+", "".join(marks)) and set(string.punctuation) < set(marks)

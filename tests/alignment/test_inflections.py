"""Inflected words get what their lemma has, and keep what they have."""

import pytest

from prealign_ds.alignment.inflections import with_inflections
from prealign_ds.alignment.sources import Pair

PAIRS = [
    Pair("Worker", "de", "Arbeiter", "d"),
    Pair("worker", "ru", "рабочий", "m"),
    Pair("workers", "ru", "рабочие", "m"),
    Pair("go", "de", "gehen", "d"),
    Pair("go", "de", "fahren", "d"),
    Pair("united", "de", "vereint", "d"),
    Pair("unite", "de", "vereinigen", "d"),
]


def test_a_word_gets_the_translations_of_its_lemma_in_languages_where_it_has_none():
    found = with_inflections(
        iter(PAIRS), ["Workers", "workers", "went", "united", "worker", "children", "...", "go"], "en"
    )
    assert found[: len(PAIRS)] == PAIRS
    assert found[len(PAIRS) :] == [
        Pair("workers", "de", "Arbeiter", "d"),
        Pair("went", "de", "gehen", "d"),
        Pair("went", "de", "fahren", "d"),
    ]


def test_a_language_without_lemmas_is_named():
    with pytest.raises(ValueError, match="language qq: no lemmas are known in it; leave inflections out"):
        with_inflections(PAIRS, ["workers"], "qq")

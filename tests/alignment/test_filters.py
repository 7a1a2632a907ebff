from collections import Counter

from prealign_ds.alignment.filters import FUNCTION_WORDS, MOST_SENSES, plausible
from prealign_ds.alignment.sources import Pair

PAIRS = [
    Pair("is", "de", "West", "d"),
    Pair("well", "de", "na ja", "d"),
    Pair("bank", "zh", "银 行", "d"),
    Pair("piano", "ru", "piano", "d"),
    Pair("piano", "de", "K" * 61, "d"),
    Pair("piano", "clone", "piano", "d"),
    Pair("piano", "de", "Klavier", "d"),
]


def test_what_is_left_out_is_counted():
    dropped = Counter()
    kept = list(plausible(PAIRS, dropped, phrases=False, excluded=FUNCTION_WORDS))
    assert [pair.translation for pair in kept] == ["银 行", "piano", "Klavier"]
    assert dropped == {"excluded": 1, "phrase": 1, "other_script": 1, "too_long": 1}
    assert [pair.translation for pair in plausible(PAIRS, Counter())] == ["West", "na ja", "银 行", "piano", "Klavier"]


def test_an_entry_of_a_million_senses_is_cut():
    dropped = Counter()
    pairs = (Pair("set", "de", f"Wort{number}", "d") for number in range(1_000_000))
    assert len(list(plausible(pairs, dropped))) == MOST_SENSES
    assert dropped == {"too_many": 1_000_000 - MOST_SENSES}

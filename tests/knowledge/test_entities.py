"""Artificial names: pronounceable, never the same twice, and distinct in every script."""

import pytest
import regex

from prealign_ds.knowledge.entities import NUM_NAMES, names, spell

SCRIPTS = {
    "en": r"^[A-Z][a-z]{5,12}$",
    "ru": r"^\p{Lu}\p{Ll}+$",
    "ar": r"^\p{Arabic}+$",
    "zh": r"^\p{Han}{3,5}$",
}
PRONOUNCEABLE = regex.compile(r"^(?:sh|[bdfghjklmnrstz])[aio][nlrmk]?(?:(?:sh|[bdfghjklmnrstz])[aio]){2}[nlrmk]?$")


@pytest.mark.parametrize("language", list(SCRIPTS))
def test_names_are_distinct_in_every_script(language):
    drawn = list(names(3, 0, 30_000))
    forms = [spell(name, language, "transliterated") for name in drawn]
    assert len(set(forms)) == len(forms)
    assert all(regex.match(SCRIPTS[language], form) for form in forms)
    assert all(spell(name, language, "same") == spell(name, "en", "same") for name in drawn[:100])
    assert all(PRONOUNCEABLE.match(spell(name, language, "same").lower()) for name in drawn[:1000])


def test_a_seed_decides_the_order_and_ranges_are_parts_of_it():
    whole = list(names(1, 0, 60))
    assert [*names(1, 0, 20), *names(1, 20, 60)] == whole
    assert not set(whole) & set(names(2, 0, 60))


def test_a_known_name_in_four_scripts():
    name = ("sh", "a", "n", "d", "i", "j", "o", "k")
    found = [spell(name, language, "transliterated") for language in ("de", "ru", "ar", "zh")]
    assert found == ["Shandijok", "Шандиджок", "شانديجوك", "沙恩迪乔克"]


def test_more_names_than_there_are():
    assert len(list(names(1, NUM_NAMES - 2, NUM_NAMES))) == 2
    with pytest.raises(ValueError, match="use fewer periods"):
        next(names(1, 0, NUM_NAMES + 1))

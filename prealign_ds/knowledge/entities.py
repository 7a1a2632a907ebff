"""Artificial names: pronounceable, never the same twice, and written in four scripts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from prealign_ds.randomness import KeyedPermutation, key_of

Script = Literal["same", "transliterated"]

# A name is three syllables of a consonant and a vowel; the first and the last may end in one more consonant. The
# letters are chosen such that different names stay different in every script; Arabic has no letters for other vowels.
_ONSETS = "b d f g h j k l m n r s sh t z".split()
_VOWELS = "a i o".split()
_CODAS = ["", *"n l r m k".split()]
_CYRILLIC = dict(zip([*_ONSETS, *_VOWELS, ""], [*"б д ф г х дж к л м н р с ш т з а и о".split(), ""], strict=True))
_ARABIC = dict(zip([*_ONSETS, *_VOWELS, ""], [*"ب د ف غ ه ج ك ل م ن ر س ش ت ز ا ي و".split(), ""], strict=True))
_HAN_SYLLABLES = (
    "巴比博达迪多法菲佛加吉戈哈希霍贾季乔卡基科拉利洛马米莫纳尼诺腊里罗萨西索沙施绍塔蒂托扎齐佐"  # ba bi bo da ...
)
_HAN = dict(zip([o + v for o in _ONSETS for v in _VOWELS], _HAN_SYLLABLES, strict=True))
_HAN |= dict(zip(_CODAS, ["", *"恩尔耳姆克"], strict=True))
_SIZES = (len(_CODAS), len(_VOWELS), len(_ONSETS), len(_VOWELS), len(_ONSETS), len(_CODAS), len(_VOWELS), len(_ONSETS))
NUM_NAMES = 45**3 * 36
"""Different names that there are."""

Name = tuple[str, ...]
"""The sounds of a name: onset, vowel, coda, onset, vowel, onset, vowel, coda."""


def names(seed: int, first: int, end: int) -> Iterator[Name]:
    """The names ``first .. end - 1`` of the order that ``seed`` decides.

    Raises:
        ValueError: If there are not so many names.
    """
    if end > NUM_NAMES:
        raise ValueError(
            f"knowledge: name {end - 1:,} is asked for, and there are {NUM_NAMES:,}; "
            "use fewer periods (knowledge.period_tokens) or fewer facts (knowledge.facts, frequencies, directions)"
        )
    order = KeyedPermutation(NUM_NAMES, key_of("names", seed))
    for number in range(first, end):
        yield _sounds(order(number))


def _sounds(number: int) -> Name:
    digits = []
    for size in _SIZES:
        number, digit = divmod(number, size)
        digits.append(digit)
    last, v3, o3, v2, o2, middle, v1, o1 = digits
    first, second, third = ((_ONSETS[o], _VOWELS[v]) for o, v in ((o1, v1), (o2, v2), (o3, v3)))
    return (*first, _CODAS[middle], *second, *third, _CODAS[last])


def spell(name: Name, language: str, script: Script) -> str:
    """``name`` in Latin letters, or in the script of ``language`` (ru, ar, zh) if names are transliterated."""
    if script == "same" or language not in ("ru", "ar", "zh"):
        return "".join(name).capitalize()
    if language == "ru":
        return "".join(_CYRILLIC[sound] for sound in name).capitalize()
    if language == "ar":
        return "".join(_ARABIC[sound] for sound in name)
    o1, v1, coda, o2, v2, o3, v3, last = name
    return _HAN[o1 + v1] + _HAN[coda] + _HAN[o2 + v2] + _HAN[o3 + v3] + _HAN[last]

"""Inflected words find the translations of their lemma: a dictionary has worker, the text has workers."""

from __future__ import annotations

from collections.abc import Iterable

import simplemma

from prealign_ds.alignment.sources import Pair
from prealign_ds.words import is_alphabetic


def with_inflections(pairs: Iterable[Pair], words: Iterable[str], language: str) -> list[Pair]:
    """``pairs``, and those of its lemma for every word that has none of its own in some language, behind them.

    Args:
        pairs: From dictionaries, best translation of a word first.
        words: The words of the corpus, in any case.
        language: Language of the words.

    Raises:
        ValueError: If no lemmas are known in this language.
    """
    pairs = list(pairs)
    entries: dict[str, dict[str, list[Pair]]] = {}
    for pair in pairs:
        entries.setdefault(pair.word.lower(), {}).setdefault(pair.language, []).append(pair)
    added = []
    for word in dict.fromkeys(word.lower() for word in words if is_alphabetic(word)):
        try:
            lemma = simplemma.lemmatize(word, lang=language).lower()
        except ValueError as error:
            raise ValueError(f"language {language}: no lemmas are known in it; leave inflections out") from error
        own = entries.get(word, {})
        for code, found in entries.get(lemma, {}).items():
            if code not in own:
                added += [pair._replace(word=word) for pair in found]
    return pairs + added

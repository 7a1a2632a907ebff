"""Directions: the language in which a fact is told, and the one in which it is asked."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple


class Direction(NamedTuple):
    """Facts are told in one language and asked in another."""

    told: str
    asked: str

    def __str__(self) -> str:
        """As in the configuration and in results."""
        return f"{self.told}->{self.asked}"


def directions_of(names: Collection[str] | None, source_language: str, languages: Sequence[str]) -> list[Direction]:
    """The directions that ``knowledge.directions`` names, or those of the paper's Figure 3.

    Args:
        names: ``told->asked``, or None: with the source language en and another one x, en->en, x->x, en->x and x->en.
        source_language: The source language.
        languages: Languages with training text.

    Raises:
        ValueError: If a name is no direction, occurs twice, or names a language without training text.
    """
    if names is None:
        others = [language for language in dict.fromkeys(languages) if language != source_language]
        pairs = [(x, x) for x in (source_language, *others)]
        pairs += [pair for x in others for pair in ((source_language, x), (x, source_language))]
        return [Direction(*pair) for pair in pairs]
    directions = []
    for name in names:
        told, arrow, asked = name.partition("->")
        if not arrow or not told or not asked:
            raise ValueError(f"knowledge.directions: {name!r}: write it as told->asked, for example en->de")
        for language in (told, asked):
            if language not in languages:
                raise ValueError(
                    f"knowledge.directions: {name!r}: no corpus in {language} (data.corpora has "
                    f"{', '.join(dict.fromkeys(languages))}); add one, or remove the direction"
                )
        directions.append(Direction(told, asked))
    if len(set(directions)) < len(directions) or not directions:
        raise ValueError(f"knowledge.directions: {list(names)}: name one or more, each once")
    return directions

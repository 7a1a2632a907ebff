"""Which pairs of a dictionary are worth keeping, by their looks alone; what is left out is counted by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from prealign_ds.alignment.sources import Pair
from prealign_ds.corpus.clone import CLONE_LANGUAGE
from prealign_ds.languages import UNSPACED, base_of, foreign_to

MOST_CHARACTERS = 60
MOST_SENSES = 100
"""Of a word in one language: what comes after them is a damaged entry, or a list."""

FUNCTION_WORDS = frozenset(
    """a an the this that these those i me my mine myself you your yours yourself yourselves he him his himself she her
    hers herself it its itself we us our ours ourselves they them their theirs themselves who whom whose which what
    be am is are was were been being have has had having do does did doing done will would shall should can could
    may might must ought not no nor and or but if because as until while of at by for with about against between
    into through during before after above below to from up down in out on off over under again further then once
    here there when where why how all any both each few more most other some such only own same so than too very
    just also yet else ever whether though although unless since upon within without toward towards among amongst
    onto per via""".split()
)
"""English words whose translations say little: their use differs too much from language to language."""


def plausible(
    pairs: Iterable[Pair], dropped: Counter[str], phrases: bool = True, excluded: Collection[str] = ()
) -> Iterator[Pair]:
    """The pairs that look like translations.

    Args:
        pairs: From dictionaries.
        dropped: Counts what is left out: ``excluded`` words, a ``phrase``, ``other_script`` than that of the language,
            ``too_long`` or beyond :data:`MOST_SENSES` (``too_many``).
        phrases: Whether translations of several words are kept.
        excluded: Words of the source language, in lower case.
    """
    senses: Counter[tuple[str, str]] = Counter()
    for pair in pairs:
        reason = _obstacle(pair, phrases, excluded)
        if not reason:
            senses[pair.word, pair.language] += 1
            reason = "too_many" if senses[pair.word, pair.language] > MOST_SENSES else ""
        if reason:
            dropped[reason] += 1
        else:
            yield pair


def _obstacle(pair: Pair, phrases: bool, excluded: Collection[str]) -> str:
    if pair.word.lower() in excluded:
        return "excluded"
    if pair.language == CLONE_LANGUAGE:
        return ""
    if len(pair.translation) > MOST_CHARACTERS:
        return "too_long"
    if not phrases and " " in pair.translation and base_of(pair.language) not in UNSPACED:
        return "phrase"
    foreign = foreign_to(pair.language)
    return "other_script" if foreign is not None and foreign.search(pair.translation) else ""

"""Which translations the target text attests, and how often: dictionaries list many that no model will ever read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from prealign_ds.alignment.counting import count_words
from prealign_ds.alignment.sources import Pair
from prealign_ds.languages import UNSPACED, base_of
from prealign_ds.words import words_of


def attestations(texts: Iterable[str], language: str, translations: Collection[str]) -> dict[str, int]:
    """How often each of ``translations`` occurs in ``texts``, in any case.

    Of a translation of several words it is how often its rarest word occurs. In a language without spaces, where words
    have no visible border, text is cut into translations from the left, the longest one that fits first.

    Args:
        texts: Documents in the target language.
        language: Its code.
        translations: What to look for.
    """
    if base_of(language) in UNSPACED:
        found = _count_inside(texts, {text.lower() for text in translations})
        return {text: found[text.lower()] for text in translations}
    words: Counter[str] = Counter()
    for word, (count, _) in count_words(texts).items():
        words[word.lower()] += count
    return {text: min((words[word] for word in words_of(text.lower())), default=0) for text in translations}


def _count_inside(texts: Iterable[str], wanted: Collection[str]) -> Counter[str]:
    """How often each piece is met when text is read from the left, the longest piece at each place first."""
    lengths = sorted({len(text) for text in wanted} - {0}, reverse=True)
    found: Counter[str] = Counter()
    for text in texts:
        for run in text.lower().split():
            start = 0
            while start < len(run):
                piece = next((run[start : start + n] for n in lengths if run[start : start + n] in wanted), "")
                if piece:
                    found[piece] += 1
                start += len(piece) or 1
    return found


def attested(
    pairs: Iterable[Pair], texts: Mapping[str, Iterable[str]], most: int | None = None
) -> tuple[list[Pair], dict[str, tuple[int, int]]]:
    """The pairs whose translation the target text knows, those that it has most often first.

    Args:
        pairs: From dictionaries.
        texts: Documents by target language; pairs of other languages stay as they are.
        most: Translations of a word that are kept in each language, the first ones where there is no text; None keeps
            all.

    Returns:
        The pairs that are kept; and for each language how many of its pairs the text attests, of how many.
    """
    pairs = list(pairs)
    counts = {
        language: attestations(documents, language, {pair.translation for pair in pairs if pair.language == language})
        for language, documents in texts.items()
    }
    seen = [pair for pair in pairs if pair.language not in counts or counts[pair.language][pair.translation]]
    ranked = sorted(seen, key=lambda pair: -counts.get(pair.language, {}).get(pair.translation, 0))
    before, after = (Counter(pair.language for pair in part) for part in (pairs, seen))
    return _first(ranked, most), {language: (after[language], before[language]) for language in counts}


def _first(ranked: Sequence[Pair], most: int | None) -> list[Pair]:
    if most is None:
        return list(ranked)
    kept: dict[tuple[str, str], set[str]] = {}
    result = []
    for pair in ranked:
        known = kept.setdefault((pair.word, pair.language), set())
        if pair.translation in known or len(known) < most:
            known.add(pair.translation)
            result.append(pair)
    return result

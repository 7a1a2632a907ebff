"""What an alignment table is worth, language by language, before a GPU hour is spent on it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from prealign_ds.alignment.counting import WordCount
from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.words import is_alphabetic

_NUM_MISSING = 20
_NUM_SAMPLES = 30


class Quality(NamedTuple):
    """The translations into one language; words and their forms are those of the training text, made of letters.

    Attributes:
        num_words: Entries with a translation.
        num_pairs: Translations.
        running: Share of the running words that have one.
        types: Share of the distinct words that have one.
        missing: The most frequent words without any.
        samples: Entries drawn evenly, with all their translations.
    """

    num_words: int
    num_pairs: int
    running: float
    types: float
    missing: list[str]
    samples: dict[str, tuple[str, ...]]


def qualities(table: AlignmentTable, counts: Mapping[str, WordCount], seed: int = 0) -> dict[str, Quality]:
    """The quality of a table by language; held-out pairs do not count.

    Args:
        table: The table.
        counts: Word counts of the training text.
        seed: Draws the samples.
    """
    forms = sorted(filter(is_alphabetic, counts), key=lambda word: (-counts[word].count, word))
    number_F = np.array([counts[word].count for word in forms], dtype=np.int64)
    entry_F = np.array([-1 if (place := table.lookup(word)) is None else place for word in forms], dtype=np.int64)
    found = {}
    for place, language in enumerate(table.languages):
        edges = (table.edge_language == place) & ~table.edge_held_out
        has_W = np.zeros(len(table.words) + 1, dtype=bool)  # the last is that of forms without an entry
        has_W[table.edge_word[edges]] = True
        has_F = has_W[entry_F]
        entries = np.flatnonzero(has_W).tolist()
        drawn = random.Random(seed).sample(entries, min(_NUM_SAMPLES, len(entries)))
        found[language] = Quality(
            num_words=len(entries),
            num_pairs=int(edges.sum()),
            running=float(number_F[has_F].sum() / max(number_F.sum(), 1)),
            types=float(has_F.sum() / max(len(forms), 1)),
            missing=[forms[form] for form in np.flatnonzero(~has_F)[:_NUM_MISSING].tolist()],
            samples={(word := table.words[entry]): table.translations(word)[language] for entry in sorted(drawn)},
        )
    return found


def summary(found: Mapping[str, Quality], attested: Mapping[str, tuple[int, int]]) -> str:
    """One line for each language.

    Args:
        found: From :func:`qualities`.
        attested: Of the dictionaries' pairs by language: how many translations the target text has, of how many.
    """
    lines = [f"{'':8}{'words':>10}{'pairs':>10}{'senses':>8}{'running words':>15}{'types':>8}{'attested':>10}"]
    for language, one in found.items():
        kept, number = attested.get(language, (0, 0))
        share = f"{kept / number:.1%}" if number else "-"
        lines.append(
            f"{language:8}{one.num_words:>10,}{one.num_pairs:>10,}{one.num_pairs / max(one.num_words, 1):>8.2f}"
            f"{one.running:>15.1%}{one.types:>8.1%}{share:>10}"
        )
    return "\n".join(lines)


def details(found: Mapping[str, Quality]) -> str:
    """What to read: the most frequent words without a translation, and sampled entries, language by language."""
    parts = []
    for language, one in found.items():
        parts.append(f"== {language}: most frequent words without a translation\n{' '.join(one.missing) or 'none'}")
        lines = "\n".join(f"{word}: {', '.join(texts)}" for word, texts in one.samples.items())
        parts.append(f"== {language}: sampled entries, the frequent ones first\n{lines}")
    return "\n\n".join(parts) + "\n"

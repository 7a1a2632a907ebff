"""Made-up text and translations for benchmarks, and nothing that takes long to import."""

import random
from collections.abc import Iterator, Mapping
from itertools import accumulate

from prealign_ds.alignment.counting import WordCount
from prealign_ds.alignment.sources import Pair

_SYLLABLES = [a + b + c for a in ("", *"bdfglmnprstw", "st", "th", "ch") for b in "aeiou" for c in ("", "n", "r", "s")]


def first_characters(texts: Iterator[str], characters: int) -> Iterator[str]:
    """The first texts, until they have so many characters."""
    while characters > 0 and (text := next(texts, "")):
        characters -= len(text)
        yield text


def made_up_texts(seed: int = 0) -> Iterator[str]:
    """Endless documents whose words follow Zipf's law, with the marks that make words hard to find."""
    rng = random.Random(seed)
    words = list(dict.fromkeys("".join(rng.choices(_SYLLABLES, k=min(1 + place // 99, 3))) for place in range(60_000)))
    weights = list(accumulate(1 / (place + 3) for place in range(len(words))))
    endings = [" "] * 40 + [", "] * 3 + [". "] * 3 + ["'s ", "n't ", "; ", "? ", '" ', "-", ".\n", ".\n\n"]
    while True:
        chosen = rng.choices(words, cum_weights=weights, k=round(rng.lognormvariate(6, 0.8)) + 1)
        begins_sentence, parts = True, []
        for word in chosen:
            ending = rng.choice(endings)
            kind = rng.random()
            if begins_sentence or kind < 0.03:
                word = word.capitalize()
            elif kind < 0.05:
                word = str(rng.randrange(2000))
            elif kind < 0.07:
                word = '"' + word
            parts.append(word + ending)
            begins_sentence = ending[0] in ".?"
        yield "".join(parts)


def made_up_pairs(counts: Mapping[str, WordCount], seed: int = 0) -> Iterator[Pair]:
    """One to five translations of each word with letters into each of four languages."""
    rng = random.Random(seed)
    for word in counts:
        if word[0].isalpha():
            for language in ("de", "es", "fr", "it"):
                for _ in range(rng.randint(1, 5)):
                    yield Pair(word, language, "".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))), "made-up")

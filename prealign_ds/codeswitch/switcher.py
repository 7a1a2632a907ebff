"""The code-switcher: replaces words by translations in the input, and never in the target (paper Eq. 6).

``vanilla`` mode (Eq. 5), which also trains on the translations, is kept as the paper's baseline.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from transformers import PreTrainedTokenizerFast

from prealign_ds.alignment.rows import expand_ranges
from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.codeswitch.spans import CONTEXT, WordFinder, split_leading_space
from prealign_ds.corpus.clone import CLONE_LANGUAGE, clone_ids
from prealign_ds.corpus.tokenizer import FragmentEncoder
from prealign_ds.randomness import mix_array
from prealign_ds.words import copy_case

IGNORED = -100
"""Target of a position that no loss is computed for."""

Mode = Literal["off", "input_only", "vanilla"]


class TokenRow(Protocol):
    """What a corpus of tokens offers: its length, and ranges that end early at the end of the corpus."""

    num_tokens: int

    def read(self, start: int, count: int) -> np.ndarray:
        """Up to ``count`` tokens from ``start``."""


@dataclass
class Switched:
    """One sample after switching.

    Attributes:
        input_ids: int64 of shape (S,).
        targets: int64 of shape (S,): the token that each position predicts, :data:`IGNORED` for none.
        num_words: Words that begin in the sample.
        num_drawn: Of these, how many the draw chose; those that the table covers are switched.
        num_switched: How many were replaced, by language.
    """

    input_ids: np.ndarray
    targets: np.ndarray
    num_words: int = 0
    num_drawn: int = 0
    num_switched: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Choices:
    """All replacements of one word as it is spelled in tokens; ``cumulative`` ends at 1."""

    cumulative: list[float]
    languages: list[str]
    tokens: list[np.ndarray]


class CodeSwitcher:
    """Replaces each word that the table covers with probability ``ratio``.

    The draw of a word depends on (key, token offset of the word) alone, so that it is the same for every batching,
    trainer and world size. The language is drawn by ``language_weights`` among those that have a translation, then the
    translation uniformly. The case of the word and the white space before it are kept.

    Args:
        table: The alignment table; held-out pairs are not used.
        tokenizer: The tokenizer of the corpus.
        mode: ``input_only`` (Eq. 6) or ``vanilla`` (Eq. 5).
        language_weights: Share of each language in the switched words; languages that are absent are not used.
            None gives every language of the table the same share.

    Raises:
        ValueError: If a weight is negative, or names a language that the table does not have.
    """

    def __init__(
        self,
        table: AlignmentTable,
        tokenizer: PreTrainedTokenizerFast,
        mode: Mode = "input_only",
        language_weights: Mapping[str, float] | None = None,
    ):
        self.mode = mode
        self._table = table
        self._weights = dict(language_weights or dict.fromkeys(table.languages, 1.0))
        for language, weight in self._weights.items():
            if language not in table.languages or weight < 0:
                raise ValueError(
                    f"code-switch weight {language}: {weight}: weights are 0 or more, and of the table's languages "
                    f"{sorted(table.languages)}"
                )
        self._encode = FragmentEncoder(tokenizer)
        self._words = WordFinder(self._encode.pieces)
        self._clone_ids = clone_ids(tokenizer)
        self._choices: dict[bytes, _Choices] = {}

    def __call__(self, corpus: TokenRow, start: int, length: int, ratio: float, key: int) -> Switched:
        """Switch the sample that owns the tokens ``start .. start + length`` (the last one as a target only).

        Expansion is cut at ``length``. Shrinkage is filled with the tokens that follow, whose targets are ignored, so
        that no token of the corpus counts twice as a target.

        Args:
            corpus: The tokens.
            start: Offset of the sample's first token.
            length: Sequence length S.
            ratio: Probability to switch a covered word.
            key: Key of (seed, corpus, epoch).
        """
        before = min(CONTEXT, start)
        row = corpus.read(start - before, before + length + 1 + CONTEXT)
        spans = self._words.spans(row)
        starts = spans.starts[before : before + length]
        offsets = np.arange(start, start + length, dtype=np.uint64)
        bits = mix_array(offsets ^ np.uint64(key))
        threshold = np.uint64(min(int(ratio * 2.0**64), 2**64 - 1))
        places = np.flatnonzero((bits < threshold) & starts)
        ends = self._words.ends(row, spans, places + before) - before
        tokens = row[before : before + length + 1].astype(np.int64)
        whole = (places < ends) & (ends <= length)
        begins, ends, draws = places[whole], ends[whole], bits[places[whole]]
        chosen, replacements, languages = [], [], []
        raw = tokens.tobytes()
        for word, (begin, end, draw) in enumerate(zip(begins.tolist(), ends.tolist(), draws.tolist(), strict=True)):
            if choices := self._choices_of(raw[8 * begin : 8 * end]):
                choice = bisect_right(choices.cumulative, (draw & 0xFFFFFFFF) * 2.0**-32)
                chosen.append(word)
                replacements.append(choices.tokens[choice])
                languages.append(choices.languages[choice])
        inputs, targets = self._assemble(tokens, begins[chosen], ends[chosen], replacements)
        if (missing := length - len(inputs)) > 0:
            following = corpus.read(start + length, missing).astype(np.int64)
            inputs = np.concatenate([inputs, following, np.zeros(missing - len(following), dtype=np.int64)])
            targets = np.concatenate([targets, np.full(missing, IGNORED, dtype=np.int64)])
        return Switched(inputs[:length], targets[:length], int(starts.sum()), len(begins), Counter(languages))

    def _assemble(
        self, tokens: np.ndarray, begins: np.ndarray, ends: np.ndarray, replacements: list[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of the whole switched row; ``tokens`` has one more than the inputs, the last target.

        Input-only: a kept token predicts its successor in the ORIGINAL text, which for the predecessor of a switched
        word is the original word's first token; of a replacement only the last token predicts, namely what follows the
        original word. Vanilla: every token predicts its successor in the switched text.
        """
        if not replacements:
            return tokens[:-1], tokens[1:]
        lengths = np.array([len(replacement) for replacement in replacements])
        growth = np.cumsum(lengths - (ends - begins))
        finals = ends + growth  # behind each replacement, in the new row
        switched, shift = np.zeros((2, len(tokens)), dtype=np.int64)
        switched[begins] = 1
        switched[ends] -= 1
        shift[ends] = np.diff(growth, prepend=0)
        kept = np.flatnonzero(np.cumsum(switched[:-1]) == 0)
        places = kept + np.cumsum(shift)[kept]
        row = np.empty(len(tokens) - 1 + growth[-1], dtype=np.int64)
        row[places] = tokens[kept]
        row[expand_ranges(finals - lengths, finals)] = np.concatenate(replacements)
        if self.mode == "vanilla":
            return row, np.append(row[1:], tokens[-1])
        targets = np.full(len(row), IGNORED, dtype=np.int64)
        targets[places] = tokens[kept + 1]
        targets[finals - 1] = tokens[ends]
        return row, targets

    def _choices_of(self, spelling: bytes) -> _Choices | None:
        choices = self._choices.get(spelling)
        # Words without a translation are not remembered: the table bounds memory, the corpus does not.
        if choices is None and (choices := self._find_choices(np.frombuffer(spelling, dtype=np.int64))):
            self._choices[spelling] = choices
        return choices

    def _find_choices(self, tokens: np.ndarray) -> _Choices | None:
        space, word = split_leading_space(self._words.text(tokens))
        index = self._table.lookup(word)
        if index is None:
            return None
        languages: list[str] = []
        replacements: list[np.ndarray] = []
        probabilities: list[float] = []
        for language, translations in self._table.translations(self._table.words[index]).items():
            if not self._weights.get(language):
                continue
            if language == CLONE_LANGUAGE:
                found = [self._clone_ids[tokens]]
            else:
                encoded = self._encode([space + copy_case(word, translation) for translation in translations])
                found = [ids for ids in encoded if ids is not None]
            languages += [language] * len(found)
            replacements += found
            probabilities += [self._weights[language] / len(found)] * len(found)
        if not replacements:
            return None
        cumulative = np.cumsum(probabilities) / np.sum(probabilities)
        cumulative[-1] = 1.0
        return _Choices(cumulative.tolist(), languages, replacements)

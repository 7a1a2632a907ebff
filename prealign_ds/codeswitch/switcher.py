"""The code-switcher: replaces words by translations in the input, and never in the target (paper Eq. 6).

``vanilla`` mode (Eq. 5), which also trains on the translations, is kept as the paper's baseline.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from transformers import PreTrainedTokenizerFast

from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.codeswitch.spans import CONTEXT, WORD_START, WordFinder, split_leading_space
from prealign_ds.corpus.clone import CLONE_LANGUAGE, clone_ids
from prealign_ds.corpus.tokenizer import FragmentEncoder
from prealign_ds.randomness import mix_array
from prealign_ds.words import copy_case

IGNORED = -100
"""Target of a position that no loss is computed for."""

Mode = Literal["off", "input_only", "vanilla"]
Unit = Literal["word", "sentence"]

_SIZE = 8  # bytes of a token: rows are put together from slices of bytes, which cost far less than slices of arrays
_COLUMNS_GROW = threading.Lock()  # not of one switcher, so that switchers can be pickled
_LOW_BITS = np.uint64(0xFFFFFFFF)
_IGNORED = np.int64(IGNORED).tobytes()


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


class CodeSwitcher:
    """Replaces each word that the table covers with probability ``ratio``.

    The draw of a word depends on (key, token offset of the word) alone, so that it is the same for every batching,
    trainer and world size. The language is drawn by ``language_weights`` among those that have a translation, then the
    translation uniformly. The case of the word and the white space before it are kept.

    With ``unit="sentence"`` the words of a sentence share the draw at its first token, so that all or none are
    replaced, and in one language; what a sample begins with counts as a sentence.

    Args:
        table: The alignment table; held-out pairs are not used.
        tokenizer: The tokenizer of the corpus.
        mode: ``input_only`` (Eq. 6) or ``vanilla`` (Eq. 5).
        language_weights: Share of each language in the switched words; languages that are absent are not used.
            None gives every language of the table the same share.
        fixed_shares: Whether a language keeps its share where a word has no translation in it, so that the word then
            stays as it is, as it always does in a switched sentence; else the other languages share it.
        unit: What is drawn.

    Raises:
        ValueError: If a weight is negative, or names a language that the table does not have.
    """

    def __init__(
        self,
        table: AlignmentTable,
        tokenizer: PreTrainedTokenizerFast,
        mode: Mode = "input_only",
        language_weights: Mapping[str, float] | None = None,
        fixed_shares: bool = False,
        unit: Unit = "word",
    ):
        self.mode = mode
        self.unit = unit
        self._table = table
        self._weights = dict(language_weights or dict.fromkeys(table.languages, 1.0))
        for language, weight in self._weights.items():
            if language not in table.languages or weight < 0:
                raise ValueError(
                    f"code-switch weight {language}: {weight}: weights are 0 or more, and of the table's languages "
                    f"{sorted(table.languages)}"
                )
        self._fixed_shares = fixed_shares or unit == "sentence"
        self._encode = FragmentEncoder(tokenizer)
        self._words = WordFinder(self._encode.pieces)
        self._clone_ids = clone_ids(tokenizer)
        # The replacements of all words seen so far, in columns: few objects, few cache misses. A word as it is spelled
        # in tokens has a range of them, over which ``_cumulative`` rises to 1. An empty one keeps the word.
        self._choices: dict[bytes, range] = {}
        self._cumulative = array("d")
        self._replacements: list[bytes] = []
        self._languages: list[str] = []

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
        row = corpus.read(start - before, before + length + 1 + CONTEXT).astype(np.int64)
        bits = mix_array(np.arange(start, start + length, dtype=np.uint64) ^ np.uint64(key))
        done = self.switch_row(row, before, bits, ratio)
        if (missing := length - len(done.input_ids)) > 0:
            following = corpus.read(start + length, missing).astype(np.int64)
            zeros = np.zeros(missing - len(following), dtype=np.int64)
            done.input_ids = np.concatenate([done.input_ids, following, zeros])
            done.targets = np.concatenate([done.targets, np.full(missing, IGNORED, dtype=np.int64)])
        done.input_ids, done.targets = done.input_ids[:length], done.targets[:length]
        return done

    def switch_row(self, row: np.ndarray, before: int, bits: np.ndarray, ratio: float) -> Switched:
        """Switch tokens that bring their own random bits; the result is neither cut nor filled to a length.

        Args:
            row: int64, the tokens with up to :data:`CONTEXT` others on each side.
            before: Place in it of the first token.
            bits: uint64, 64 random bits for each token that predicts; the one behind them is a target only.
            ratio: Probability to switch a covered word.
        """
        last = before + len(bits)
        marks = self._words.marks(row)
        starts = marks[before:last] >= WORD_START
        if self.unit == "sentence":
            begins_sentence = self._words.sentence_starts(row[before:last])
            bits = bits[np.maximum.accumulate(np.where(begins_sentence, np.arange(len(bits)), 0))]
        threshold = np.uint64(min(int(ratio * 2.0**64), 2**64 - 1))
        places = ((bits < threshold) & starts).nonzero()[0]
        draws = (bits[places] & _LOW_BITS) * 2.0**-32
        begins = (places + before).tolist()
        ends = [end if end <= last else 0 for end in self._words.ends(row, marks, begins)]
        inputs, targets, chosen = self._switch(row.tobytes(), before, last, begins, ends, draws.tolist())
        return Switched(
            inputs,
            targets,
            num_words=int(np.count_nonzero(starts)),
            num_drawn=len(ends) - ends.count(0),
            num_switched=Counter(map(self._languages.__getitem__, chosen)),
        )

    def _switch(
        self, raw: bytes, first: int, last: int, begins: list[int], ends: list[int], draws: list[float]
    ) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Inputs and targets of the whole switched row ``first .. last``, and the places of the replacements chosen.

        Input-only: a kept token predicts its successor in the ORIGINAL text, which for the predecessor of a switched
        word is the original word's first token; of a replacement only the last token predicts, namely what follows the
        original word. Vanilla: every token predicts its successor in the switched text.

        Args:
            raw: The row, :data:`_SIZE` bytes a token.
            first: Place in it of the sample's first token.
            last: Place of the sample's last token, a target only.
            begins: Where drawn words begin.
            ends: Where they end; 0 if they are not whole.
            draws: Numbers in [0, 1) that choose among their replacements.
        """
        known, cumulative, replacements = self._choices, self._cumulative, self._replacements
        inputs: list[bytes] = []
        targets: list[bytes] = []
        chosen: list[int] = []
        first, last = first * _SIZE, last * _SIZE  # from here on places are counted in bytes
        shown, due = first, first + _SIZE  # where the text goes on in them
        for begin, end, draw in zip(begins, ends, draws, strict=True):
            if not end:
                continue
            begin, end = begin * _SIZE, end * _SIZE
            spelling = raw[begin:end]
            choices = known.get(spelling)
            if choices is None:
                choices = self._find_choices(spelling)
            if choices:
                choice = bisect_right(cumulative, draw, choices.start, choices.stop)
                replacement = replacements[choice]
                if not replacement:  # the share of a language that the word lacks
                    continue
                inputs += raw[shown:begin], replacement
                targets += raw[due : begin + _SIZE], _IGNORED * (len(replacement) // _SIZE - 1)
                shown = due = end
                chosen.append(choice)
        inputs.append(raw[shown:last])
        targets.append(raw[due : last + _SIZE])
        if self.mode == "vanilla":
            row = _join([*inputs, raw[last : last + _SIZE]])
            return row[:-1], row[1:], chosen
        return _join(inputs), _join(targets), chosen

    def _find_choices(self, spelling: bytes) -> range:
        """The places of a word's replacements, which are looked up, encoded and remembered."""
        tokens = np.frombuffer(spelling, dtype=np.int64)
        space, word = split_leading_space(self._words.text(tokens))
        index = self._table.lookup(word)
        translations = {} if index is None else self._table.translations(self._table.words[index])
        replacements: list[bytes] = []
        languages: list[str] = []
        probabilities: list[float] = []
        for language in self._weights if self._fixed_shares else translations:
            texts = translations.get(language, ())
            if not self._weights.get(language):
                continue
            if language == CLONE_LANGUAGE:
                found = [self._clone_ids[tokens]] if texts else []
            else:
                encoded = self._encode([space + copy_case(word, text) for text in texts])
                found = [ids for ids in encoded if ids is not None]
            spelled = [ids.tobytes() for ids in found] or [b""] * self._fixed_shares
            replacements += spelled
            languages += [language] * len(spelled)
            probabilities += [self._weights[language] / max(1, len(spelled))] * len(spelled)
        if not any(replacements):
            replacements, languages, probabilities = [], [], []
        cumulative = np.cumsum(probabilities) / np.sum(probabilities) if probabilities else np.empty(0)
        cumulative[-1:] = 1.0
        with _COLUMNS_GROW:
            choices = range(len(self._replacements), len(self._replacements) + len(replacements))
            self._replacements += replacements
            self._languages += languages
            self._cumulative.extend(cumulative.tolist())
        # Of the words without, only those of one token are remembered: table and vocabulary bound memory, not the text.
        if choices or len(tokens) == 1:
            self._choices[spelling] = choices
        return choices


def _join(pieces: list[bytes]) -> np.ndarray:
    return np.frombuffer(bytearray().join(pieces), dtype=np.int64)

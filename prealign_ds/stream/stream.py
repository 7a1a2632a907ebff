"""The training stream: ``stream[k]`` is a pure function of (seed, data, blend, knowledge) and the switch settings.

There is no state but k: the number of ranks, workers, steps or samples in a batch cannot change what sample k is, and
resuming is remembering one integer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from prealign_ds.codeswitch.switcher import IGNORED, CodeSwitcher, TokenRow
from prealign_ds.files import digest_of
from prealign_ds.knowledge.plan import KnowledgePlan
from prealign_ds.randomness import KeyedPermutation, key_of
from prealign_ds.stream.blend import Blend


@dataclass
class StreamCorpus:
    """One corpus of a stream.

    Attributes:
        name: Its name, which also keys its shuffling and switching.
        language: Its language, for the logs.
        tokens: Its tokens.
        weight: Its share of the samples.
        switched: Whether words are code-switched, as in source-language text.
        digest: A hash of its tokens, for the fingerprint.
    """

    name: str
    language: str
    tokens: TokenRow
    weight: float
    switched: bool
    digest: str


@dataclass
class Sample:
    """One training sample.

    Attributes:
        input_ids: int64 of shape (S,).
        targets: int64 of shape (S,), already shifted: the token that each position predicts, or -100.
        language: Language of its corpus.
        num_words: Words that begin in it, if its corpus is code-switched, else 0.
        num_drawn: Of these, how many the draw chose.
        num_switched: Words replaced, by language.
    """

    input_ids: np.ndarray
    targets: np.ndarray
    language: str = ""
    num_words: int = 0
    num_drawn: int = 0
    num_switched: dict[str, int] = field(default_factory=dict)


class _Pass(NamedTuple):
    """The current pass over a corpus: what its order and its switches are drawn with."""

    epoch: int
    order: KeyedPermutation
    switch_key: int


class CodeSwitchedStream(Dataset):
    """Shuffled, blended and code-switched samples of fixed length S.

    Sample i of a corpus owns its tokens ``[iS, iS + S]``, the last one as a target only. Each pass over a corpus visits
    its samples in a new order, which a key decides and no stored array.

    Args:
        corpora: The corpora.
        sequence_length: Tokens S in a sample.
        seed: Decides orders and switches.
        switcher: The code-switcher, or None for plain text.
        ratio: Probability to switch a covered word: a number, or a function of the sample index.
        block: Samples in a block of the blend; see :class:`prealign_ds.stream.blend.Blend`.
        knowledge: Artificial facts, whose sentences take the place of samples; in the source language they are
            code-switched as all text of it. None tells none.

    Raises:
        ValueError: If a corpus is shorter than one sample, or two corpora have one name.
    """

    def __init__(
        self,
        corpora: Sequence[StreamCorpus],
        sequence_length: int,
        seed: int,
        switcher: CodeSwitcher | None = None,
        ratio: float | Callable[[int], float] = 0.05,
        block: int | None = None,
        knowledge: KnowledgePlan | None = None,
    ):
        if len({corpus.name for corpus in corpora}) < len(corpora):
            raise ValueError(f"corpora {[corpus.name for corpus in corpora]}: give each one a name of its own")
        self.corpora = list(corpora)
        self.sequence_length = sequence_length
        self.seed = seed
        self.switcher = switcher
        self.ratio = ratio
        self.knowledge = knowledge
        self.blend = Blend([corpus.weight for corpus in corpora], seed, block)
        self._samples_per_epoch = [(corpus.tokens.num_tokens - 1) // sequence_length for corpus in corpora]
        for corpus, samples in zip(corpora, self._samples_per_epoch, strict=True):
            if samples < 1:
                raise ValueError(
                    f"corpus {corpus.name}: {corpus.tokens.num_tokens} tokens are less than one sample of "
                    f"{sequence_length} + 1; give more text or a smaller data.sequence_length"
                )
        self._passes: dict[int, _Pass] = {}

    def locate(self, index: int) -> tuple[StreamCorpus, int, int]:
        """The corpus, the epoch over it, and the offset of the first token of sample ``index``.

        Where the sample tells facts instead, this is what it would be without.
        """
        corpus, visit, start = self._locate(index)
        return corpus, visit.epoch, start

    def _locate(self, index: int) -> tuple[StreamCorpus, _Pass, int]:
        place, local = self.blend(index)
        corpus, samples = self.corpora[place], self._samples_per_epoch[place]
        epoch, turn = divmod(local, samples)
        visit = self._passes.get(place)
        if visit is None or visit.epoch != epoch:
            order = KeyedPermutation(samples, key_of("order", self.seed, corpus.name, epoch))
            visit = self._passes[place] = _Pass(epoch, order, key_of("switch", self.seed, corpus.name, epoch))
        return corpus, visit, visit.order(turn) * self.sequence_length

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``, any integer from 0 on."""
        if self.knowledge is not None and (told := self.knowledge.locate(index)) is not None:
            switched = told.language == self.knowledge.source_language
            sample = self._read(index, told.tokens, told.start, told.language, told.key if switched else None)
            end = self.knowledge.eos
            sample.targets = np.where((sample.input_ids == end) & (sample.targets == end), IGNORED, sample.targets)
            return sample
        corpus, visit, start = self._locate(index)
        return self._read(index, corpus.tokens, start, corpus.language, visit.switch_key if corpus.switched else None)

    def _read(self, index: int, tokens: TokenRow, start: int, language: str, switch_key: int | None) -> Sample:
        """The sample that begins at ``start``, code-switched if there is a key to do so."""
        if self.switcher is None or switch_key is None:
            row = tokens.read(start, self.sequence_length + 1).astype(np.int64)
            return Sample(row[:-1], row[1:], language)
        ratio = self.ratio(index) if callable(self.ratio) else self.ratio
        done = self.switcher(tokens, start, self.sequence_length, ratio, switch_key)
        return Sample(done.input_ids, done.targets, language, done.num_words, done.num_drawn, done.num_switched)

    def fingerprint(self, **more: Any) -> str:
        """A hash of all that decides the samples, with ``more`` (table digest, tokenizer digest, switch settings)."""
        corpora = [[c.name, c.language, c.weight, c.switched, c.digest] for c in self.corpora]
        knowledge = {} if self.knowledge is None else {"knowledge": self.knowledge.digest()}
        own = {"corpora": corpora, "length": self.sequence_length, "seed": self.seed, "block": self.blend.block}
        return digest_of(own | knowledge | more)


def labels_for_internal_shift(input_ids: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels, both of length S + 1, for a model that shifts labels itself (transformers' ``labels``).

    Such a model compares position i with label i + 1 and has no label for its last position, so the targets move one to
    the right and the inputs get one more token, which predicts nothing. The loss is that of the S targets.
    """
    edge = np.zeros((*input_ids.shape[:-1], 1), dtype=np.int64)
    return np.concatenate([input_ids, edge], -1), np.concatenate([edge + IGNORED, targets], -1)


__all__ = ["IGNORED", "CodeSwitchedStream", "Sample", "StreamCorpus", "labels_for_internal_shift"]

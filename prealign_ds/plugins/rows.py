"""Code-switched samples as map-style datasets for anybody's trainer: ``rows[k]`` is a pure function of k.

There is no ``set_epoch`` to forget: passes over the rows are part of the index, so that workers, ranks and resuming
change nothing. Labels are unshifted, as transformers' causal language models expect them: position i predicts label
i + 1. A row of T tokens has T - 1 targets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from prealign_ds.codeswitch.switcher import CodeSwitcher, Switched
from prealign_ds.randomness import KeyedPermutation, key_of
from prealign_ds.stream.stream import IGNORED, CodeSwitchedStream, Sample, labels_for_internal_shift

Row = dict[str, np.ndarray]


def switch_rate(samples: Iterable[Switched | Sample]) -> float:
    """Share of the words in some samples (``dataset.switched(k)``, ``stream[k]``) that are switched.

    About the ratio times the share of words that the table covers and that a sample holds whole.
    """
    words, switched = np.sum([(sample.num_words, sum(sample.num_switched.values())) for sample in samples], axis=0)
    return float(switched / max(1, words))


class StreamRows(Dataset):
    """Samples ``first .. end`` of a stream, each as a row of T = S + 1 tokens.

    A model with T positions wants a stream with ``sequence_length`` T - 1. Read the rows in their order: the stream has
    shuffled them.

    Args:
        stream: The samples.
        first: Index of the first one.
        end: Index after the last one.

    Raises:
        ValueError: If there are none between the two.
    """

    def __init__(self, stream: CodeSwitchedStream, first: int, end: int):
        if not 0 <= first < end:
            raise ValueError(f"first={first}, end={end}: no samples; give 0 <= first < end")
        self.stream, self.first, self.end = stream, first, end

    def __len__(self) -> int:
        """Number of samples."""
        return self.end - self.first

    def __getitem__(self, index: int) -> Row:
        """``input_ids`` and ``labels``, int64 of shape (T,); the last input token predicts nothing."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} is outside range({len(self)})")
        sample = self.switched(index)
        input_ids, labels = labels_for_internal_shift(sample.input_ids, sample.targets)
        return {"input_ids": input_ids, "labels": labels}

    def switched(self, index: int) -> Sample:
        """The sample behind row ``index``, with the counts of words."""
        return self.stream[self.first + index]


class CodeSwitchedRows(Dataset):
    """Any map-style dataset of token rows, code-switched in the input and not in the target (paper Eq. 6).

    A row owns its tokens: expansion is cut at its end, shrinkage leaves its last places empty (id 0, no target). A word
    that holds the row's last token is not switched. Rows of unequal length are for the trainer's collator to pad.

    Args:
        rows: Its items are rows of token ids, or mappings with ``input_ids``; unpadded, and plain text: every token but
            the first is a target.
        switcher: The code-switcher.
        ratio: Probability to switch a covered word.
        seed: Decides switches and orders.
        passes: Times that the rows are read, each with switches of its own. Index k is of pass k // len(rows).
        shuffle: Whether each pass has an order of its own; else index k is row k % len(rows).
        name: The corpus, which also keys its switches.

    Raises:
        ValueError: If there are no rows or passes; on reading, if a row is padded or has labels of its own.
    """

    def __init__(
        self,
        rows: Any,
        switcher: CodeSwitcher,
        ratio: float = 0.05,
        seed: int = 0,
        passes: int = 1,
        shuffle: bool = False,
        name: str = "rows",
    ):
        if len(rows) < 1 or passes < 1:
            raise ValueError(f"{len(rows)} rows in {passes} passes: give 1 or more of each")
        self.rows, self.switcher, self.ratio = rows, switcher, ratio
        self.seed, self.passes, self.shuffle, self.name = seed, passes, shuffle, name

    def __len__(self) -> int:
        """Rows times passes."""
        return len(self.rows) * self.passes

    def locate(self, index: int) -> tuple[int, int]:
        """The pass that index ``index`` belongs to, and the row that it is."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} is outside range({len(self)})")
        turn, place = divmod(index, len(self.rows))
        if self.shuffle:
            place = KeyedPermutation(len(self.rows), key_of("order", self.seed, self.name, turn))(place)
        return turn, place

    def __getitem__(self, index: int) -> Row:
        """``input_ids`` and ``labels``, int64 of the row's shape (T,)."""
        done, last = self._switch(index)
        return {
            "input_ids": np.append(done.input_ids, last),
            "labels": np.concatenate([[IGNORED], done.targets]),
        }

    def switched(self, index: int) -> Switched:
        """Inputs and targets of index ``index``, already shifted, of shape (T - 1,), with the counts of words."""
        return self._switch(index)[0]

    def _switch(self, index: int) -> tuple[Switched, np.int64]:
        turn, place = self.locate(index)
        tokens = self._tokens(place)
        key = key_of("switch", self.seed, self.name, turn, place)
        return self.switcher(_TokenRow(tokens), 0, len(tokens) - 1, self.ratio, key), tokens[-1]

    def _tokens(self, place: int) -> np.ndarray:
        row = self.rows[place]
        if isinstance(row, Mapping):
            if not np.all(row.get("attention_mask", 1)):
                raise ValueError(f"row {place} is padded (attention_mask has 0); give unpadded rows, collators pad")
            if not np.array_equal(row.get("labels", row["input_ids"]), row["input_ids"]):
                raise ValueError(f"row {place}: its labels are not its input_ids; only plain text can be code-switched")
            row = row["input_ids"]
        tokens = np.asarray(row, dtype=np.int64)
        if tokens.ndim != 1 or len(tokens) < 2:
            raise ValueError(f"row {place} has shape {tokens.shape}: give rows of 2 tokens or more")
        return tokens


class _TokenRow:
    """A row in memory, read as a corpus is."""

    def __init__(self, tokens: np.ndarray):
        self._tokens, self.num_tokens = tokens, len(tokens)

    def read(self, start: int, count: int) -> np.ndarray:
        return self._tokens[start : start + max(0, count)]

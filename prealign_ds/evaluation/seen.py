"""Words of a target text that the alignment stage has seen, and those that it has not (paper Figure 5)."""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedTokenizerFast

from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.codeswitch.spans import CONTEXT, WORD_START, WordFinder, split_leading_space
from prealign_ds.codeswitch.switcher import TokenRow
from prealign_ds.corpus.clone import CLONE_LANGUAGE
from prealign_ds.corpus.tokenizer import token_bytes
from prealign_ds.words import is_alphabetic

GROUPS = ("seen", "unseen")
"""What the numbers 1 and 2 of a group stand for; 0 is neither."""

_REACH = 64  # tokens on each side that a word at the border of the range may have there


class SeenWords:
    """Tells for each token of a target text whether its word is a translation in the aligned table.

    A clone word is seen if the table has its original; a word of another language, in this form or lower-cased, if it
    is a translation in the table (as a word of its own, not within a longer expression). Held-out translations are not
    seen. Neither seen nor unseen are digits and punctuation, and words that are not exactly whole tokens.

    Args:
        table: The table, cut to what the alignment stage uses.
        tokenizer: The tokenizer.
        language: Language of the text, one of the table's.
    """

    def __init__(self, table: AlignmentTable, tokenizer: PreTrainedTokenizerFast, language: str):
        self._finder = WordFinder(token_bytes(tokenizer))
        self._table, self._is_clone, self._size = table, language == CLONE_LANGUAGE, len(tokenizer)
        self._translations: set[str] = set()
        if not self._is_clone:
            own = (table.edge_language == table.languages.index(language)) & ~table.edge_held_out
            self._translations = {table.edge_text[edge] for edge in own.nonzero()[0].tolist()}
        self._known: dict[bytes, int] = {}

    def __call__(self, tokens: TokenRow, start: int, count: int) -> np.ndarray:
        """The group of each of the tokens ``start .. start + count - 1`` of a text: 1 seen, 2 unseen, 0 neither."""
        before = min(_REACH, start)
        row = tokens.read(start - before, before + count + _REACH).astype(np.int64)
        if self._is_clone:
            row = np.where(row >= self._size, row - self._size, row)
        marks = self._finder.marks(row)
        begins = (marks >= WORD_START).nonzero()[0]
        begins = begins[(begins >= (CONTEXT if start > before else 0)) & (begins < before + count)].tolist()
        groups = np.zeros(len(row), dtype=np.int64)
        for begin, end in zip(begins, self._finder.ends(row, marks, begins), strict=True):
            groups[begin:end] = self._group(row[begin:end]) if end else 0
        return groups[before : before + count]

    def _group(self, word: np.ndarray) -> int:
        spelling = word.tobytes()
        if spelling not in self._known:
            _, text = split_leading_space(self._finder.text(word))
            self._known[spelling] = (1 if self._is_seen(text) else 2) if is_alphabetic(text) else 0
        return self._known[spelling]

    def _is_seen(self, word: str) -> bool:
        if self._is_clone:
            place = self._table.lookup(word)
            return place is not None and CLONE_LANGUAGE in self._table.translations(self._table.words[place])
        return word in self._translations or word.lower() in self._translations

"""En-Clone: a second language with English's grammar and statistics and not one token in common (paper section 4.1).

The clone of token ``id`` is ``id + V`` with ``V = len(tokenizer)``; special tokens are shared. A clone corpus is a view
of ordinary token files, and a clone word's encoding is its source word's encoding plus V.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # counting workers import this module, and shall not wait for these
    from transformers import PreTrainedTokenizerFast

    from prealign_ds.corpus.tokens import CorpusTokens

CLONE_LANGUAGE = "clone"


def clone_ids(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """The clone id of every token id, int64 of shape (V,); special tokens map to themselves."""
    size = len(tokenizer)
    ids = np.arange(size, 2 * size, dtype=np.int64)
    special = np.array(sorted(set(tokenizer.all_special_ids)), dtype=np.int64)
    ids[special] = special
    return ids


class CloneTokens:
    """The clone of a row of tokens, made while reading; its files are those of the original.

    Args:
        tokens: The tokens to clone (:class:`prealign_ds.corpus.tokens.CorpusTokens`).
        ids: The clone id of every token id, from :func:`clone_ids`.
    """

    def __init__(self, tokens: CorpusTokens, ids: np.ndarray):
        self._tokens = tokens
        self._ids = ids
        self.num_tokens = tokens.num_tokens
        self.num_bytes = tokens.num_bytes
        self.digest = f"clone:{tokens.digest}"

    def read(self, start: int, count: int) -> np.ndarray:
        """Up to ``count`` clone tokens from ``start``, int64."""
        return self._ids[self._tokens.read(start, count)]

"""Short documents packed into whole samples, read as a corpus is."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


class PackedDocuments:
    """Documents in a row of tokens, none of which crosses the border of a sample; readable as a corpus.

    The row begins with the end-of-text token, and each document is followed by one. Where the next document does not
    fit into a sample, the sample is filled with end-of-text tokens; one that follows another is padding, and no target.

    Args:
        documents: Tokens of each document, without the end-of-text token.
        sequence_length: Tokens S in a sample, which owns ``[iS, iS + S]``.
        eos: The end-of-text token.

    Raises:
        ValueError: If a document with its end is longer than a sample.
    """

    def __init__(self, documents: Iterable[np.ndarray], sequence_length: int, eos: int):
        parts: list[np.ndarray] = []
        end, filled = np.array([eos]), 0
        for document in documents:
            size = len(document) + 1
            if size > sequence_length:
                raise ValueError(
                    f"knowledge: a sentence of {size} tokens is longer than data.sequence_length {sequence_length}; "
                    "raise that, or use shorter templates (knowledge.templates)"
                )
            if filled + size > sequence_length:
                parts.append(np.repeat(end, sequence_length - filled))
                filled = 0
            parts += [document, end]
            filled += size
        parts.append(np.repeat(end, sequence_length - filled if filled else 0))
        self._tokens = np.concatenate([end, *parts]).astype(np.int64)
        self.num_tokens = len(self._tokens)
        self.num_samples = (self.num_tokens - 1) // sequence_length

    def read(self, start: int, count: int) -> np.ndarray:
        """Up to ``count`` tokens from ``start``, int64."""
        return self._tokens[start : start + max(0, count)]

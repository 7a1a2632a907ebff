"""Words in a row of tokens: which token ranges are exactly one word.

A word can be switched only if its characters are exactly whole tokens (paper section 3.3 replaces whole words). Where a
word begins is not a property of one token: a leading space starts a word, but so do a line start and an opening quote,
and with a small vocabulary one character may be several tokens. Almost always the classes of two neighbouring tokens
decide; the rest (apostrophes, tokens that hold a part of a character) is decided on the decoded text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import regex

from prealign_ds.words import APOSTROPHES, WORD

CONTEXT = 12
"""Tokens of context on each side that decide a border: two characters of at most four bytes, and what a cut leaves.

A border depends on two characters to either side: ``n`` and ``t`` around an apostrophe.
"""

_MEASURED = 1 << 16  # windows remembered: contractions come again and again

_CLASS = regex.compile(r"(?P<space>\s)|(?P<letter>[\p{L}\p{M}])|(?P<digit>\p{N})|(?P<other>.)", regex.DOTALL)
_LEADING_SPACE = regex.compile(r"\s*")
_NONE, _SPACE, _LETTER = 0, 1, 2
_CODES = {"space": _SPACE, "letter": _LETTER, "digit": 3, "other": 4}


@dataclass(frozen=True)
class WordSpans:
    """Word candidates of a token row, as arrays over its tokens.

    Attributes:
        starts: bool, whether a word (or a piece of one that tokens cut) begins at this token.
        borders: int64, ascending places where a new word or white space begins, the row's length at the end.
        unclean: int64, running count of tokens that are not of one class of characters; shape (tokens + 1,).
        unclear: int64, running count of tokens that only decoded text can judge; shape (tokens + 1,).
    """

    starts: np.ndarray
    borders: np.ndarray
    unclean: np.ndarray
    unclear: np.ndarray


class WordFinder:
    """Finds words in rows of token ids.

    Args:
        pieces: The bytes of every token id, None for special tokens (``corpus.tokenizer.token_bytes``).
    """

    def __init__(self, pieces: list[bytes | None]):
        self._pieces = pieces
        self._measured: dict[tuple[tuple[int, ...], int], int] = {}
        size = len(pieces)
        self._first = np.zeros(size, dtype=np.uint8)
        self._last = np.zeros(size, dtype=np.uint8)
        self._leads = np.zeros(size, dtype=bool)
        self._clean = np.zeros(size, dtype=bool)
        self._unclear = np.zeros(size, dtype=bool)
        for token, piece in enumerate(pieces):
            if piece:
                self._classify(token, piece)

    def _classify(self, token: int, piece: bytes) -> None:
        try:
            text = piece.decode()
        except UnicodeDecodeError:
            self._unclear[token] = self._clean[token] = True
            return
        classes = [_CODES[match.lastgroup] for match in _CLASS.finditer(text)]
        self._first[token], self._last[token] = classes[0], classes[-1]
        self._leads[token] = classes[0] == _SPACE
        body = classes[_LEADING_SPACE.match(text).end() :]
        self._unclear[token] = any(character in APOSTROPHES for character in text)
        self._clean[token] = bool(body) and (self._unclear[token] or len(set(body)) == 1)

    def spans(self, tokens: np.ndarray) -> WordSpans:
        """Classify every token of a row; linear, vectorised, and without decoding."""
        first, last, clean = self._first[tokens], self._last[tokens], self._clean[tokens]
        unclear = self._unclear[tokens]
        begins = self._leads[tokens]
        begins[1:] |= first[1:] != last[:-1]
        begins[:1] = True
        hazy = unclear.copy()
        hazy[1:] |= unclear[:-1]
        begins |= hazy
        return WordSpans(
            starts=begins & clean,
            borders=np.append(np.flatnonzero(begins), len(tokens)),
            unclean=_running(~clean),
            unclear=_running(unclear),
        )

    def ends(self, tokens: np.ndarray, spans: WordSpans, begins: np.ndarray) -> np.ndarray:
        """Where the words end that begin at the tokens ``begins``; 0 where no word is exactly whole tokens.

        Args:
            tokens: The row, with :data:`CONTEXT` tokens on each side of the places of interest where the text has them.
            spans: Of the same row.
            begins: int64 places in the row where ``spans.starts`` holds.
        """
        ends = spans.borders[np.searchsorted(spans.borders, begins, side="right")]
        unclear = spans.unclear[np.minimum(ends + 1, len(tokens))] > spans.unclear[np.maximum(begins - 1, 0)]
        result = np.where(spans.unclean[ends] > spans.unclean[begins], 0, ends)
        for place in np.flatnonzero(unclear):
            result[place] = self._end_by_text(tokens, int(begins[place]))
        return result

    def _end_by_text(self, tokens: np.ndarray, begin: int) -> int:
        """The same as :meth:`ends` for one word: decode the tokens that can matter, find words, compare borders."""
        low = begin
        while low > max(0, begin - CONTEXT) and self._pieces[tokens[low - 1]] is not None:
            low -= 1
        high = begin + 1
        while high < len(tokens) and self._pieces[tokens[high]] is not None and not self._leads[tokens[high]]:
            high += 1
        window = (tuple(tokens[low:high].tolist()), begin - low)
        if window not in self._measured:
            if len(self._measured) >= _MEASURED:
                self._measured.clear()
            self._measured[window] = self._measure(*window)
        length = self._measured[window]
        return begin + length if length else 0

    def _measure(self, tokens: tuple[int, ...], begin: int) -> int:
        """Tokens of the word that begins at ``tokens[begin]``, by the definition; 0 if there is none."""
        raw = [self._pieces[token] or b"" for token in tokens]
        edges = np.cumsum([0, *map(len, raw)]).tolist()
        start = edges[begin]
        start += _byte_length(_LEADING_SPACE.match(_decode(b"".join(raw)[start:])).group())
        text = _decode(b"".join(raw))
        for match in WORD.finditer(text):
            if (word_start := _byte_length(text[: match.start()])) >= start:
                end = word_start + _byte_length(match.group())
                return edges.index(end) - begin if word_start == start and end in edges else 0
        return 0

    def text(self, tokens: np.ndarray) -> str:
        """The text of a row of ordinary tokens."""
        return _decode(b"".join(self._pieces[token] or b"" for token in tokens.tolist()))


def split_leading_space(text: str) -> tuple[str, str]:
    """``text`` as (leading white space, rest)."""
    end = _LEADING_SPACE.match(text).end()
    return text[:end], text[end:]


def _running(flags: np.ndarray) -> np.ndarray:
    counts = np.zeros(len(flags) + 1, dtype=np.int64)
    np.cumsum(flags, out=counts[1:])
    return counts


def _decode(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


def _byte_length(text: str) -> int:
    return len(text.encode(errors="surrogateescape"))

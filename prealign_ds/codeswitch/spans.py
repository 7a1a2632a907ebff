"""Words in a row of tokens: which token ranges are exactly one word.

A word can be switched only if its characters are exactly whole tokens (paper section 3.3 replaces whole words). Where a
word begins is not a property of one token: a leading space starts a word, but so do a line start and an opening quote,
and with a small vocabulary one character may be several tokens. Almost always the classes of two neighbouring tokens
decide; the rest (apostrophes, tokens that hold a part of a character) is decided on the decoded text.
"""

from __future__ import annotations

import numpy as np
import regex

from prealign_ds.words import APOSTROPHES, WORD

CONTEXT = 12
"""Tokens of context on each side that decide a border: two characters of at most four bytes, and what a cut leaves.

A border depends on two characters to either side: ``n`` and ``t`` around an apostrophe.
"""

_MEASURED = 1 << 16  # windows remembered: contractions come again and again

_KIND = regex.compile(
    rf"(?P<s>\s)|(?P<l>[\p{{L}}\p{{M}}])|(?P<d>\p{{N}})|(?P<u>[{APOSTROPHES}\udc80-\udcff])|(?P<o>.)", regex.DOTALL
)  # space, letter, digit, unclear (an apostrophe, or a byte of a character that tokens cut), other
_KIND_BIT = {"": 1, "s": 2, "l": 4, "d": 8, "u": 16, "o": 32}
_CLOSES_SENTENCE = regex.compile(r"[.!?\u2026\u061f\u06d4\u0964][\p{Pe}\p{Pf}\"'*_]*$")  # a space must follow
_CLOSES_QUOTE = regex.compile(r"[\p{Pe}\p{Pf}\"'*_]+$")
_BREAKS_SENTENCE = regex.compile(r"\n|[\u3002\uff01\uff1f][\p{Pe}\p{Pf}]*$")
_LEADING_SPACE = regex.compile(r"\s*")

_BORDER, _UNCLEAR, _CLEAN = 0x3F, 0x40, 0x80
WORD_START = _CLEAN + 1
"""Least mark of a token at which a word (or a piece of one that tokens cut) begins."""


class WordFinder:
    """Finds words in rows of token ids.

    Each token of a row has a mark, a byte that depends on it and its predecessor alone: ``_BORDER`` bits, not all 0
    where a new word or white space begins; ``_UNCLEAR``, only decoded text can judge it; ``_CLEAN``, it is of one class
    of characters, white space before them aside. What is unclear counts as clean, and as a border before and behind.

    Args:
        pieces: The bytes of every token id, None for special tokens (``corpus.tokenizer.token_bytes``).
    """

    def __init__(self, pieces: list[bytes | None]):
        self._pieces = pieces
        self._measured: dict[tuple[tuple[int, ...], int], int] = {}
        self._leads, self._closes, self._quotes, self._breaks = np.zeros((4, len(pieces)), dtype=bool)
        # mark = _own[token] & _after[predecessor]: the predecessor's last kind is one bit, and that bit is all that is
        # missing from the border bits of a token that goes on with this kind.
        self._own, self._after = np.zeros((2, len(pieces)), dtype=np.uint8)
        for token, piece in enumerate(pieces):
            text = _decode(piece or b"")
            kinds = "".join(match.lastgroup for match in _KIND.finditer(text))
            unclear, leads = "u" in kinds, kinds.startswith("s")
            clean = unclear or len(set(kinds.lstrip("s"))) == 1
            goes_on = 0 if unclear or leads else _KIND_BIT[kinds[:1]]
            self._leads[token] = leads
            self._closes[token] = bool(_CLOSES_SENTENCE.search(text))
            self._quotes[token] = bool(_CLOSES_QUOTE.match(text))
            self._breaks[token] = piece is None or bool(_BREAKS_SENTENCE.search(text))
            self._own[token] = _BORDER - goes_on | _UNCLEAR * unclear | _CLEAN * clean
            self._after[token] = _KIND_BIT["u" if unclear else kinds[-1:]] | _UNCLEAR | _CLEAN

    def marks(self, tokens: np.ndarray) -> np.ndarray:
        """The marks of a row's tokens, uint8; vectorised, and without decoding."""
        marks = self._own[tokens]
        marks[1:] &= self._after[tokens[:-1]]
        return marks

    def sentence_starts(self, tokens: np.ndarray) -> np.ndarray:
        """Where a sentence begins: bool, as long as the row, whose first token always begins one.

        Behind a full stop, question or exclamation mark (with a token of brackets or quotes that close after it) and
        white space, behind the marks of Chinese and Japanese, a line end, and a special token. Abbreviations end
        sentences too; a mark that is cut into several tokens does not.
        """
        starts, closes = np.ones(len(tokens), dtype=bool), self._closes[tokens]
        closes[1:] |= self._quotes[tokens[1:]] & closes[:-1]
        before, after = tokens[:-1], tokens[1:]
        starts[1:] = self._breaks[before] | (closes[:-1] & (self._leads[after] | self._breaks[after]))
        return starts

    def ends(self, tokens: np.ndarray, marks: np.ndarray, begins: list[int]) -> list[int]:
        """Where the words end that begin at the tokens ``begins``; 0 where no word is exactly whole tokens.

        Args:
            tokens: The row, with :data:`CONTEXT` tokens on each side of the places of interest where the text has them.
            marks: Of the same row.
            begins: Places in the row with a mark of :data:`WORD_START` or more.
        """
        flags = marks.tobytes() + bytes([_BORDER])  # the row's end; it also stands before the first token
        ends = []
        for begin in begins:
            end = begin + 1
            while flags[end] == _CLEAN:
                end += 1
            if not flags[end]:  # a token that begins as a part of the word and ends as something else
                end = 0
            elif (flags[begin - 1] | flags[begin] | flags[end]) & _UNCLEAR:
                end = self._end_by_text(tokens, begin)
            ends.append(end)
        return ends

    def _end_by_text(self, tokens: np.ndarray, begin: int) -> int:
        """The same as :meth:`ends` for one word: decode the tokens that can matter, find words, compare borders."""
        low, size = begin, 0
        while low and size < CONTEXT and (piece := self._pieces[tokens[low - 1]]) is not None:
            low, size = low - 1, size + len(piece)
        high = begin + 1
        while high < len(tokens) and self._pieces[tokens[high]] is not None and not self._leads[tokens[high]]:
            high += 1
        window = (tuple(tokens[low:high].tolist()), begin - low)
        length = self._measured.get(window)
        if length is None:
            if len(self._measured) >= _MEASURED:
                self._measured.clear()  # threads that prepare batches share it: what one reads, another may clear
            length = self._measured[window] = self._measure(*window)
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


def _decode(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


def _byte_length(text: str) -> int:
    return len(text.encode(errors="surrogateescape"))

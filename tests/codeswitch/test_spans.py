"""Word spans against the definition: decode everything, find words, compare character borders with token borders."""

import numpy as np
import pytest
from conftest import make_text
from hypothesis import given, settings
from hypothesis import strategies as st

from prealign_ds.codeswitch.spans import WORD_START, WordFinder
from prealign_ds.corpus.tokenizer import FragmentEncoder, token_bytes
from prealign_ds.words import WORD


def reference_spans(pieces, tokens):
    """(begin, end) of every word that is exactly whole tokens, by decoding whole documents."""
    spans, begin = [], 0
    for place in range(len(tokens) + 1):
        if place == len(tokens) or pieces[tokens[place]] is None:
            spans += _document_spans(pieces, tokens, begin, place)
            begin = place + 1
    return spans


def _document_spans(pieces, tokens, low, high):
    raw = [pieces[token] for token in tokens[low:high]]
    edges = np.cumsum([0, *map(len, raw)]).tolist()
    text = b"".join(raw).decode(errors="surrogateescape")
    size = [0]
    for character in text:
        size.append(size[-1] + len(character.encode(errors="surrogateescape")))
    found = []
    for match in WORD.finditer(text):
        start, end = size[match.start()], size[match.end()]
        for token in range(len(raw)):
            space = b""
            body = raw[token].decode(errors="surrogateescape")
            space = body[: len(body) - len(body.lstrip())].encode()
            if edges[token] + len(space) == start and end in edges and edges[token + 1] > start:
                found.append((low + token, low + edges.index(end)))
                break
    return found


def fast_spans(finder, tokens):
    marks = finder.marks(tokens)
    begins = np.flatnonzero(marks >= WORD_START).tolist()
    ends = finder.ends(tokens, marks, begins)
    return [(begin, end) for begin, end in zip(begins, ends, strict=True) if end]


@pytest.mark.parametrize("seed", range(3))
def test_spans_of_running_text_equal_the_definition(any_tokenizer, seed):
    pieces = token_bytes(any_tokenizer)
    ids = any_tokenizer.encode(make_text(600, seed + 10), add_special_tokens=False)
    tokens = np.array([*ids[:300], any_tokenizer.eos_token_id, *ids[300:]])
    expected = reference_spans(pieces, tokens)
    assert len(expected) > 300
    assert fast_spans(WordFinder(pieces), tokens) == expected


_ALPHABET = st.sampled_from([*"abtsdn'’'’\"(.,-—  \n19é你م", "́", "don't", " the", " piano", "U.S."])


@settings(max_examples=300, deadline=None)
@given(text=st.lists(_ALPHABET, max_size=30).map("".join))
def test_spans_of_any_text_equal_the_definition(any_tokenizer, text):
    pieces = token_bytes(any_tokenizer)
    tokens = np.array(any_tokenizer.encode(text, add_special_tokens=False), dtype=np.int64)
    assert fast_spans(WordFinder(pieces), tokens) == reference_spans(pieces, tokens)


def test_tokens_spell_the_text(any_tokenizer):
    pieces = token_bytes(any_tokenizer)
    text = make_text(200, 5) + "naïve 你好\n“x”"
    ids = any_tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(pieces[token] for token in ids).decode().lstrip(" ") == text.lstrip(" ")


@pytest.mark.parametrize("fragment", [" piano", "piano", " Klavier", "“", " 钢琴", "钢琴", "don't", " 1984"])
def test_fragments_are_spelled_exactly_and_without_an_extra_space(any_tokenizer, fragment):
    encode = FragmentEncoder(any_tokenizer)
    (ids,) = encode([fragment])
    assert b"".join(encode.pieces[token] for token in ids).decode() == fragment

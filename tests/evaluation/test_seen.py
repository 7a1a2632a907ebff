"""Seen and unseen words against a plain reading of the whole text, and their share of the perplexity."""

import math

import numpy as np
import pytest
import torch
from conftest import Row, make_text
from rigged import rigged

from prealign_ds.alignment.sources import Pair
from prealign_ds.alignment.table import AlignmentTable
from prealign_ds.corpus.tokenizer import token_bytes
from prealign_ds.evaluation.perplexity import perplexity
from prealign_ds.evaluation.seen import SeenWords
from prealign_ds.words import WORD, is_alphabetic

SEEN = ["the", "house", "doesn't", "Music", "naïve", "12", "."]


def make_table(language):
    """A table in which SEEN is translated: by clones, or as translations; a held-out word and an expression too."""
    if language == "clone":
        pairs = [Pair(word, "clone", word, "t") for word in SEEN]
    else:
        pairs = [Pair(f"source{n}", language, word, "t") for n, word in enumerate([*SEEN, "old river"])]
        pairs += [Pair("other", "ru", "piano", "t")]
    table = AlignmentTable.from_pairs(None, pairs)
    table.edge_held_out[:] = [text == "house" for text in table.edge_text]
    return table


def plain_groups(text, ids, pieces):
    """The definition, on the decoded text: words whose bytes are exactly whole tokens."""
    ends = np.cumsum([len(pieces[token] or b"") for token in ids]).tolist()
    starts = [0, *ends[:-1]]
    groups = np.zeros(len(ids), dtype=int)
    for match in WORD.finditer(text):
        begin, end = (len(text[:place].encode()) for place in match.span())
        lead = len(text[: match.start()]) - len(text[: match.start()].rstrip())
        space = begin - len(text[: match.start() - lead].encode())
        first = [n for n, start in enumerate(starts) if begin - space <= start <= begin and ends[n] > begin]
        if not is_alphabetic(match.group()) or end not in ends or not first:
            continue
        word = match.group()
        seen = (word in SEEN or word.lower() in SEEN) and word.lower() != "house"
        groups[first[-1] : ends.index(end) + 1] = 1 if seen else 2
    return groups


@pytest.mark.parametrize("language", ["de", "clone"])
def test_groups_of_any_windows_equal_the_plain_reading(any_tokenizer, language):
    text = make_text(600, 5)
    ids = np.array(any_tokenizer.encode(text, add_special_tokens=False))
    pieces = token_bytes(any_tokenizer)
    whole = b"".join(pieces[token] or b"" for token in ids).decode()
    expected = plain_groups(whole, ids.tolist(), pieces)
    assert (expected == 1).sum() > 50 and (expected == 2).sum() > 50 and (expected == 0).sum() > 50
    row = Row(ids + (len(any_tokenizer) if language == "clone" else 0))
    groups = SeenWords(make_table(language), any_tokenizer, language)
    for size in (1, 7, 40, len(ids)):
        found = np.concatenate([groups(row, start, size) for start in range(0, len(ids), size)])
        assert found.tolist() == expected.tolist(), size


def test_perplexity_by_word_has_known_parts(tokenizer):
    ids = np.array(tokenizer.encode(make_text(300, 2), add_special_tokens=False))
    size = len(tokenizer)
    table = torch.randn(size, size, generator=torch.Generator().manual_seed(1))
    groups = SeenWords(make_table("de"), tokenizer, "de")
    lengths = np.ones(size, dtype=int)
    found = perplexity(
        rigged(lambda inputs: table[inputs]), size, Row(ids), lengths, 9, 4, torch.device("cpu"), 0, groups
    )
    logs = torch.log_softmax(table.double(), 1)
    nats = np.array([-logs[a, b].item() for a, b in zip(ids, ids[1:], strict=False)])
    group = groups(Row(ids), 1, len(ids) - 1)
    for number, name in ((1, "seen"), (2, "unseen")):
        part = nats[group == number]
        assert found.by_word[name]["tokens"] == len(part) and found.by_word[name]["nats"] == pytest.approx(part.sum())
        assert found.by_word[name]["perplexity"] == pytest.approx(math.exp(part.mean()))
    assert found.nats == pytest.approx(nats.sum())
    without = perplexity(rigged(lambda inputs: table[inputs]), size, Row(ids), lengths, 9, 4, torch.device("cpu"))
    assert without.by_word == {} and without.perplexity == found.perplexity


def test_a_group_without_tokens_is_left_out(tokenizer):
    ids = np.array(tokenizer.encode("the the the", add_special_tokens=False))
    size = len(tokenizer)
    uniform = rigged(lambda inputs: torch.zeros(*inputs.shape, size))
    groups = SeenWords(make_table("de"), tokenizer, "de")
    found = perplexity(uniform, size, Row(ids), np.ones(size, int), 9, 4, torch.device("cpu"), 0, groups)
    assert set(found.by_word) == {"seen"} and found.by_word["seen"]["perplexity"] == pytest.approx(size)
